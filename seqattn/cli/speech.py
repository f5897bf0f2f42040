"""`seqattn train|eval speech`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqattn.cli import training
from seqattn.cli.interruption import interruptible
from seqattn.errors import SeqattnError

if TYPE_CHECKING:
    from seqattn.experiment.speech_config import SpeechConfig

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
    config: training.ConfigName = None,
    assignments: training.Assignments = None,
    out: training.Out = None,
    seed: training.Seed = None,
    protocol: Annotated[
        str | None, typer.Option(help="holdout, or paper: select on the test list where there is no other.")
    ] = None,
    devices: training.Devices = None,
    strategy: training.Strategy = None,
    accelerator: training.Accelerator = None,
    precision: training.Precision = None,
    resume: training.Resume = None,
) -> None:
    """Train a speech enhancer on --data-dir, on --clean mixed with --noise, or on --synthetic signals."""
    chosen = {"pairs": bool(data_dir), "mix": bool(clean or noise), "synthetic": synthetic}
    sources = [name for name, given in chosen.items() if given]
    if len(sources) > 1:
        raise SeqattnError("give one of --data-dir, --clean with --noise, and --synthetic: they exclude each other")
    if chosen["mix"] and not (clean and noise):
        raise SeqattnError("--clean and --noise belong together: give at least one folder for each")
    experiment = {
        "model.name": model,
        "data.source": sources[0] if sources else None,
        "data.data_dir": _place(data_dir) if data_dir else None,
        "data.clean_dirs": [_place(folder) for folder in clean] if clean else None,
        "data.noise_dirs": [_place(folder) for folder in noise] if noise else None,
        "seed": seed,
        "protocol": protocol,
    }
    hardware = training.hardware_keys(devices, strategy, accelerator, precision)
    training.start_training(
        "speech", config, "mambattention", assignments, experiment, hardware, out, resume, _check_source
    )


def _place(folder: Path) -> str:
    """A folder that is here, absolute; any other as it is, which may be the name of one in $SEQATTN_DATA/speech."""
    return str(folder.absolute() if folder.is_dir() else folder)


def _check_source(settings: "SpeechConfig") -> None:
    if settings.data.source == "pairs" and settings.data.data_dir is None:
        raise SeqattnError(
            "there is nothing to train on: give --data-dir DIR, --clean DIR with --noise DIR, or --synthetic"
        )


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
        text, failed = evaluate_run(run, data_dir, scale.value, out, workers, device=device)
        typer.echo(text)
    if failed:
        files = "1 file was" if failed == 1 else f"{failed} files were"
        raise SeqattnError(f"{files} left out of the means, for the reasons above: mend or remove what failed")
