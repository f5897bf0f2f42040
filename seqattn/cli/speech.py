"""`seqattn train|eval speech`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from seqattn.cli.interruption import interruptible
from seqattn.cli.overrides import assign
from seqattn.errors import SeqattnError

DataDir = Annotated[Path | None, typer.Option(help="Folder of paired files, such as VoiceBank+DEMAND's.")]


class Scale(StrEnum):
    """The scale of samples in WSS and the composite measures."""

    int16 = "int16"
    float = "float"


def train(
    data_dir: DataDir = None,
    clean: Annotated[list[Path] | None, typer.Option(help="Folder of clean speech to mix with noise.")] = None,
    noise: Annotated[list[Path] | None, typer.Option(help="Folder of noise.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Train on invented speech-like signals.")] = False,
    model: Annotated[str | None, typer.Option(help="Name of the model (default: mambattention).")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A shipped configuration or a YAML file.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as model.blocks=2.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: in runs/speech).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split, the weights and the training.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="holdout, or paper: select on the test list where there is no other.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Number of processes or GPUs.")] = None,
    strategy: Annotated[str | None, typer.Option(help="auto or ddp.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu or gpu.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed, ...")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")] = None,
) -> None:
    """Train a speech enhancer on --data-dir, on --clean mixed with --noise, or on --synthetic signals."""
    chosen = {"pairs": bool(data_dir), "mix": bool(clean or noise), "synthetic": synthetic}
    sources = [name for name, given in chosen.items() if given]
    if len(sources) > 1:
        raise SeqattnError("give one of --data-dir, --clean with --noise, and --synthetic: they exclude each other")
    if chosen["mix"] and not (clean and noise):
        raise SeqattnError("--clean and --noise belong together: give at least one folder for each")
    hardware = {
        "trainer.devices": devices,
        "trainer.strategy": strategy,
        "trainer.accelerator": accelerator,
        "trainer.precision": precision,
    }
    experiment = {
        "model.name": model,
        "data.source": sources[0] if sources else None,
        "data.data_dir": _place(data_dir) if data_dir else None,
        "data.clean_dirs": [_place(folder) for folder in clean] if clean else None,
        "data.noise_dirs": [_place(folder) for folder in noise] if noise else None,
        "seed": seed,
        "protocol": protocol,
    }
    if resume is not None and (config or assignments or out or assign(experiment)):
        raise SeqattnError(f"--resume takes everything but the devices from {resume}: leave the other options out")
    overrides = [*(assignments or []), *assign(experiment | hardware)]
    with interruptible():
        _train(config or "mambattention", overrides, out, resume)


def _place(folder: Path) -> str:
    """A folder that is here, absolute; any other as it is, which may be the name of one in $SEQATTN_DATA/speech."""
    return str(folder.absolute() if folder.is_dir() else folder)


def _train(source: str, overrides: list[str], out: Path | None, resume: Path | None) -> None:
    from seqattn.experiment.loading import load_config
    from seqattn.experiment.run_directory import RunDirectory
    from seqattn.experiment.speech_config import SpeechConfig

    if resume is not None:
        settings = RunDirectory.open(resume).read_config(SpeechConfig, overrides)
    else:
        settings = load_config(SpeechConfig, source, overrides, "speech")
    if settings.data.source == "pairs" and settings.data.data_dir is None:
        raise SeqattnError(
            "there is nothing to train on: give --data-dir DIR, --clean DIR with --noise DIR, or --synthetic"
        )
    from seqattn.experiment.speech import train_run  # only now: it imports torch

    train_run(settings, out, resume)


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run directory; default: the weights that are shipped.")
    ] = None,
    data_dir: DataDir = None,
    scale: Annotated[
        Scale, typer.Option(help="Of samples in WSS and the composites; float repeats tables.")
    ] = Scale.int16,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV of every file (default: in the run).")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that compute the measures.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one).")] = None,
) -> None:
    """Measure noisy and enhanced speech of a test list: PESQ, ESTOI, STOI, SI-SDR, SSNR, CSIG, CBAK and COVL."""
    from seqattn.experiment.speech_results import evaluate_run

    with interruptible():
        typer.echo(evaluate_run(run, data_dir, scale.value, out, workers, device=device))
