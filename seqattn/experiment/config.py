"""The typed configuration of an experiment."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
WHOLE_SERIES = 2**31 - 1  # a window that no series outgrows


class Config(BaseModel):
    """Base of every configuration: immutable, finite numbers only, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainerConfig(Config):
    """How long and on what to train; `patience` is the number of epochs without improvement before stopping."""

    max_epochs: Count = 50
    patience: Count | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Count = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    gradient_clip: Positive | None = None


class OptimizerConfig(Config):
    """The optimizer and its schedule over epochs; `min_lr` bounds both schedules, `plateau_*` serve "plateau" only."""

    name: Literal["adam", "adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    scheduler: Literal["cosine", "plateau", "none"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    min_lr: NonNegative = 0.0
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Annotated[int, Field(ge=0)] = 10

    @field_validator("min_lr")
    @classmethod
    def _below_lr(cls, value: float, info: ValidationInfo) -> float:
        if value > info.data.get("lr", math.inf):
            raise ValueError(f"must not be above lr = {info.data['lr']}")
        return value


class DataConfig(Config):
    """The data set and how it is split; `folds="auto"` means k-fold only where TRAIN is tiny, 1 a single split."""

    dataset: Annotated[str, Field(min_length=1)]
    data_dir: str | None = None
    batch_size: Count = 16
    eval_batch_size: Count = 64
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    folds: Count | Literal["auto"] = "auto"
    normalize: Literal["zscore", "none"] = "zscore"
    num_workers: Annotated[int, Field(ge=0)] = 0


class MPTSNetConfig(Config):
    """Arguments of `seqattn.models.mptsnet.MPTSNet`; widths left at None follow from the data."""

    name: Literal["mptsnet"] = "mptsnet"
    k: Count = 5
    periods: Annotated[list[Count], Field(min_length=1)] | None = None
    period_method: Literal["mean_power", "official"] = "mean_power"
    blocks: Count = 2
    layout: Literal["contiguous", "interleaved"] = "contiguous"
    weighting: Literal["input", "official"] = "input"
    pointwise: bool = False
    head: Literal["masked_mean", "flatten"] = "masked_mean"
    head_bins: Count = 1
    shared_norm: bool = False
    mask: bool = True
    embed_padding: Literal["zeros", "circular"] = "zeros"
    time_branch: bool = True
    d_model: Count | None = None
    d_token: Count | None = None
    hidden: Count = 1024
    heads: Count = 4
    ff: Count = 256
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.0
    token_steps: Count | None = None
    max_parameters: Count = 500_000_000

    def network_options(self) -> dict[str, Any]:
        """The arguments of the network that do not depend on the data."""
        return self.model_dump(exclude={"name", "k", "period_method", "periods"})


class SequenceClassifierConfig(Config):
    """Arguments of `seqattn.models.sequence_classifier.SequenceClassifier` whatever its mixer."""

    d_model: Count = 64
    depth: Count = 4
    patch_size: Count = 1
    positions: Literal["none", "sinusoidal", "learned"] = "none"
    dropout: Fraction = 0.1
    drop_path: Fraction = 0.0

    def network_options(self) -> dict[str, Any]:
        """The arguments of the network that do not depend on the data."""
        return self.model_dump(exclude={"name"})


class MambaConfig(SequenceClassifierConfig):
    """SequenceClassifier with mixer "mamba"."""

    name: Literal["mamba"] = "mamba"
    d_state: Count = 16
    d_conv: Count = 4
    expand: Count = 2


class LBMambaConfig(SequenceClassifierConfig):
    """SequenceClassifier with mixer "lbmamba"; window "full" looks back over the whole series."""

    name: Literal["lbmamba"] = "lbmamba"
    d_state: Count = 16
    d_conv: Count = 4
    expand: Count = 2
    window: Count | Literal["full", "official"] = 8

    def network_options(self) -> dict[str, Any]:
        """The arguments of the network that do not depend on the data."""
        return super().network_options() | {"window": WHOLE_SERIES if self.window == "full" else self.window}


class AttentionConfig(SequenceClassifierConfig):
    """SequenceClassifier with mixer "attention"."""

    name: Literal["attention"] = "attention"
    positions: Literal["none", "sinusoidal", "learned"] = "sinusoidal"
    heads: Count = 4
    mlp_ratio: Annotated[int, Field(ge=0)] = 2


class WersaConfig(SequenceClassifierConfig):
    """SequenceClassifier with mixer "wersa"; what is left at None is the preset's."""

    name: Literal["wersa"] = "wersa"
    positions: Literal["none", "sinusoidal", "learned"] = "sinusoidal"
    heads: Count = 4
    mlp_ratio: NonNegative = 1.6
    preset: Literal["default", "port", "softmax"] = "default"
    levels: Annotated[int, Field(ge=1, le=30)] | None = None
    num_features: Count | None = None
    feature_map: Literal["relu", "exp"] | None = None
    gate: Literal["token", "global"] = "token"
    causal: bool = False


ModelConfig = Annotated[
    MPTSNetConfig | MambaConfig | LBMambaConfig | AttentionConfig | WersaConfig, Field(discriminator="name")
]


class ClassificationConfig(Config):
    """One time-series classification experiment."""

    task: Literal["classification"] = "classification"
    name: str
    protocol: Literal["holdout", "paper"] = "holdout"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    label_smoothing: Fraction = 0.0
    data: DataConfig
    model: ModelConfig = MPTSNetConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _mptsnet_unless_named(cls, value: Any) -> Any:
        return {"name": "mptsnet"} | value if isinstance(value, dict) else value
