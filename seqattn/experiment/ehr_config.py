"""The typed configuration of an experiment on health records."""

import math
import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from seqattn.experiment.config import Config, Count, Fraction, OptimizerConfig, TrainerConfig

NAMED = ("physionet2012", "physionet2019", "mimic3-ihm", "mimic3-pheno", "synthetic")  # data sets
PATHS = ("code_map", "labels", "notes_dir", "start_times")  # options of data readers that name files or folders
# options of data readers: their type and the lowest
NUMBERS: dict[str, tuple[Any, float]] = {
    "window": (int | float, 0.1), "earliest_note": (int | float, -1e9), "hour": (int, 1), "stays": (int, 1),
    "seed": (int, 0),
}  # fmt: skip


class EhrDataConfig(Config):
    """Arguments of `seqattn.data.clinical.module.ClinicalDataModule`.

    What names a file or folder that is there becomes absolute, so that a run finds it from any folder.
    """

    dataset: Annotated[str, Field(min_length=1)]
    data_dir: str | None = None
    options: dict[str, Any] = {}  # noqa: RUF012, pydantic copies it
    steps: Annotated[int, Field(ge=2)] | None = None
    static: bool = True
    fill: Literal["forward", "published"] = "forward"
    max_rows: Count = 1000
    max_notes: Count = 5
    notes: str | None = None
    note_dim: Count = 64
    batch_size: Count = 32
    eval_batch_size: Count = 128
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    folds: Count = 1
    fold: Annotated[int, Field(ge=0)] = 0
    num_workers: Annotated[int, Field(ge=0)] = 0

    @field_validator("options")
    @classmethod
    def _numbers_of_a_reader(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Readers know their own options, and trust that numbers are some."""
        for name, (kind, lowest) in NUMBERS.items():
            given = value.get(name)
            if given is None:
                continue
            if isinstance(given, bool) or not isinstance(given, kind) or not lowest <= given < math.inf:
                a_number = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name} must be {a_number}{'' if lowest < 0 else f' of at least {lowest:g}'}")
        return value

    @field_validator("dataset", "data_dir", "notes")
    @classmethod
    def _found_from_anywhere(cls, value: str | None) -> str | None:
        return value if value in (None, *NAMED, "tfidf") else absolute(value)

    @field_validator("options")
    @classmethod
    def _files_found_from_anywhere(cls, value: dict[str, Any]) -> dict[str, Any]:
        found = {name: absolute(value[name]) for name in PATHS if isinstance(value.get(name), str)}
        return value | found


def absolute(path: str) -> str:
    """The absolute path of a file or folder that is there; any other text, such as a model's name, as it is."""
    place = os.path.expanduser(path)
    return os.path.abspath(place) if os.path.exists(place) else path


class InterleavedConfig(Config):
    """Arguments of `seqattn.models.interleaved_ehr.InterleavedEHR`; fusion null is a model of one modality."""

    name: Literal["interleaved"] = "interleaved"
    embed_dim: Count = 128
    embed_time: Annotated[int, Field(ge=2)] = 64
    num_heads: Count = 8
    num_layers: Count = 3
    cross_layers: Count | None = None
    gate: Literal["patient", "temporal", "hidden"] = "hidden"
    branches: Literal["both", "attention", "imputation"] = "both"
    fusion: Literal["interleaved", "mult", "concat", "mag", "tensor"] | None = None
    modality: Literal["series", "notes"] = "series"
    encoder: Literal["attention", "lstm", "cnn"] = "attention"
    kernel_size: Count = 1
    time_heads: Count = 8
    lstm_state: Literal["both", "backward"] = "both"
    flags: Literal["seen", "density"] = "seen"
    time_init: Literal["default", "spread"] = "default"
    dropout: Fraction = 0.1

    def network_options(self) -> dict[str, Any]:
        """The arguments of the network that do not depend on the data."""
        return self.model_dump(exclude={"name"})

    @property
    def reads_notes(self) -> bool:
        return self.fusion is not None or self.modality == "notes"


class GRUDConfig(Config):
    """Arguments of `seqattn.models.gru_d.GRUD`."""

    name: Literal["gru_d"] = "gru_d"
    hidden: Count = 64
    dropout: Fraction = 0.2

    def network_options(self) -> dict[str, Any]:
        """The arguments of the network that do not depend on the data."""
        return self.model_dump(exclude={"name"})

    @property
    def reads_notes(self) -> bool:
        return False


EhrModelConfig = Annotated[InterleavedConfig | GRUDConfig, Field(discriminator="name")]


class EhrConfig(Config):
    """One experiment on health records.

    selection: the validation measure that chooses the epoch; f1 (at 0.5) is the published rule.
    class_weights: "balanced" weighs positive cases by the ratio of negative and positive ones.
    """

    task: Literal["ehr"] = "ehr"
    name: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    selection: Literal["auprc", "auroc", "f1"] = "auprc"
    class_weights: Literal["none", "balanced"] = "none"
    data: EhrDataConfig
    model: EhrModelConfig = InterleavedConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _interleaved_unless_named(cls, value: Any) -> Any:
        return {"name": "interleaved"} | value if isinstance(value, dict) else value
