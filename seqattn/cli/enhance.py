"""`seqattn enhance`."""

from pathlib import Path
from typing import Annotated

import typer

from seqattn.cli.interruption import interruptible
from seqattn.errors import SeqattnError


def enhance(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] IN...", help="Audio files, folders or globs; a run directory before them is the run to use."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the enhanced files.")],
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run directory; default: the weights that are shipped.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist in DIR.")] = False,
    spectrogram: Annotated[
        bool, typer.Option("--spectrogram", help="Also draw each file before and after, as FILE.png in DIR.")
    ] = False,
    segment: Annotated[
        float | None, typer.Option(help="Seconds given to the network at once; fewer need less memory.")
    ] = None,
    context: Annotated[float | None, typer.Option(help="Seconds discarded at either side of a segment.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one).")] = None,
) -> None:
    """Remove noise from speech recordings of any length; rate, channels, length and sample type stay as they are."""
    if run is None and (Path(inputs[0]) / "config.yaml").is_file():
        run, inputs = Path(inputs[0]), inputs[1:]
    if not inputs:
        raise SeqattnError(f"there is nothing to enhance: name audio files, folders or globs after the run {run}")
    with interruptible():
        _enhance(inputs, output, run, overwrite, spectrogram, {"segment": segment, "context": context}, device)


def _enhance(
    inputs: list[str],
    output: Path,
    run: Path | None,
    overwrite: bool,
    spectrogram: bool,
    seconds: dict[str, float | None],
    device: str | None,
) -> None:
    from seqattn.experiment.enhancement import enhance_files
    from seqattn.experiment.enhancers import load_enhancer
    from seqattn.experiment.streaming import Segmentation

    segmentation = Segmentation(**{name: value for name, value in seconds.items() if value is not None})
    enhance_files(
        inputs, output, lambda: load_enhancer(run, device), segmentation, overwrite=overwrite, spectrogram=spectrogram
    )
