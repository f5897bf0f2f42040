"""The typed configuration of a speech-enhancement experiment."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from seqattn.experiment.config import Config, Count, NonNegative, Positive, TrainerConfig

Momentum = Annotated[float, Field(ge=0, lt=1)]


class SpeechDataConfig(Config):
    """Where pairs of noisy and clean speech come from.

    source: "pairs" reads folders of paired files below data_dir, "mix" adds noise of noise_dirs to speech of clean_dirs
    at signal-to-noise ratios (dB) drawn between the two of snr_range, or from the list snrs where it is given,
    "synthetic" invents both. segment: samples at 16 kHz. epoch_size: clips an epoch over all devices, None is every one
    once; validation, checkpoints and the decay of the learning rate come with epochs, so 250 times the batch of all
    devices validates every 250 steps, as the publication does. validation_clips: at most so many, None is all.
    """

    source: Literal["pairs", "mix", "synthetic"] = "pairs"
    data_dir: str | None = None
    clean_dirs: tuple[str, ...] = ()
    noise_dirs: tuple[str, ...] = ()
    snr_range: tuple[float, float] = (-5.0, 15.0)
    snrs: tuple[float, ...] = ()
    segment: Annotated[int, Field(ge=1600)] = 32000
    batch_size: Count = 4
    eval_batch_size: Count = 1
    epoch_size: Count | None = None
    validation_clips: Count | None = None
    num_workers: Annotated[int, Field(ge=0)] = 0

    @field_validator("snr_range")
    @classmethod
    def _range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("give the lower one first")
        return value


MIXER_OPTIONS = {
    "mamba": ("d_state", "d_conv", "expand"),
    "lbmamba": ("d_state", "d_conv", "expand", "window"),
    "lstm": ("hidden",),
    "conformer": ("kernel_size", "ff"),
}


class MambAttentionConfig(Config):
    """Arguments of `seqattn.models.mambattention.MambAttention`; those of a mixer left at None are the mixer's own."""

    name: Literal["mambattention"] = "mambattention"
    channels: Count = 64
    blocks: Count = 4
    mixer: Literal["mamba", "lbmamba", "lstm", "conformer"] = "mamba"
    heads: Annotated[Count, Field(validate_default=True)] = 8
    attention: Literal["shared", "separate", "none"] = "shared"
    attention_position: Literal["before", "after"] = "before"
    checkpoint: bool = False
    n_fft: Annotated[int, Field(ge=8, multiple_of=4)] = 400
    hop: Annotated[Count, Field(validate_default=True)] = 100
    d_state: Count | None = None
    d_conv: Count | None = None
    expand: Count | None = None
    window: Count | None = None
    hidden: Count | None = None
    kernel_size: Count | None = None
    ff: Count | None = None

    @field_validator("heads")
    @classmethod
    def _divide_channels(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("channels", 0) % value:
            raise ValueError(f"must divide channels = {info.data['channels']}")
        return value

    @field_validator("hop")
    @classmethod
    def _overlap(cls, value: int, info: ValidationInfo) -> int:
        if 2 * value > info.data.get("n_fft", math.inf):
            raise ValueError(f"must be at most half of n_fft = {info.data['n_fft']}")
        return value

    @field_validator("d_state", "d_conv", "expand", "window", "hidden", "kernel_size", "ff")
    @classmethod
    def _of_the_mixer(cls, value: int | None, info: ValidationInfo) -> int | None:
        mixer, name = info.data.get("mixer"), info.field_name
        if value is not None and mixer in MIXER_OPTIONS and name not in MIXER_OPTIONS[mixer]:
            raise ValueError(f"is no option of the mixer {mixer}, which has {' and '.join(MIXER_OPTIONS[mixer])}")
        if name == "kernel_size" and value is not None and value % 2 == 0:
            raise ValueError("must be odd")
        return value

    def network_options(self) -> dict[str, Any]:
        """The arguments of the network."""
        options = self.model_dump(exclude={"name"})
        return {name: value for name, value in options.items() if value is not None}


class SpeechLossConfig(Config):
    """Weights of the terms of the objective; metric 0 trains without the discriminator and without PESQ."""

    magnitude: NonNegative = 0.9
    phase: NonNegative = 0.3
    complex: NonNegative = 0.1
    time: NonNegative = 0.2
    metric: NonNegative = 0.05
    consistency: NonNegative = 0.1


class SpeechOptimizerConfig(Config):
    """Of both networks: AdamW whose rate is multiplied by `decay` after every epoch; exempt: see SpeechEnhancement."""

    lr: Positive = 5e-4
    betas: tuple[Momentum, Momentum] = (0.8, 0.99)
    weight_decay: NonNegative = 0.01
    decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    exempt: bool = False


class SpeechConfig(Config):
    """One speech-enhancement experiment.

    protocol: paper selects on the test list, as most published recipes do, where the data set has no validation list.
    pesq_workers: processes that compute PESQ, 0 is the training itself; None is one a clip of a batch, but at most the
    cores of each device less one, and at least 1.
    """

    task: Literal["speech"] = "speech"
    name: str
    protocol: Literal["holdout", "paper"] = "holdout"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: SpeechDataConfig = SpeechDataConfig()
    model: MambAttentionConfig = MambAttentionConfig()
    loss: SpeechLossConfig = SpeechLossConfig()
    optimizer: SpeechOptimizerConfig = SpeechOptimizerConfig()
    trainer: TrainerConfig = TrainerConfig(max_epochs=400)
    pesq_workers: Annotated[int, Field(ge=0)] | None = None
