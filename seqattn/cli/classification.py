"""`seqattn train|eval|predict classification`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from seqattn.cli import training
from seqattn.errors import SeqattnError

DataDir = Annotated[Path | None, typer.Option(help="Folder of NAME_TRAIN.ts and NAME_TEST.ts files, searched first.")]


def train(
    dataset: Annotated[str | None, typer.Option(help="A UEA/UCR data set, such as BasicMotions.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model (default: mptsnet).")] = None,
    config: training.ConfigName = None,
    assignments: training.Assignments = None,
    data_dir: DataDir = None,
    out: training.Out = None,
    seed: training.Seed = None,
    protocol: Annotated[str | None, typer.Option(help="holdout, or paper: select on TEST as published.")] = None,
    devices: training.Devices = None,
    strategy: training.Strategy = None,
    accelerator: training.Accelerator = None,
    precision: training.Precision = None,
    resume: training.Resume = None,
) -> None:
    """Train a classifier, evaluate it on TEST and write a run directory."""
    if data_dir is not None and dataset is None and resume is None and not _names_dataset(config, assignments):
        dataset = _only_dataset(data_dir)
    experiment = {
        "model.name": model,
        "data.dataset": dataset,
        "data.data_dir": str(data_dir) if data_dir else None,
        "seed": seed,
        "protocol": protocol,
    }
    hardware = training.hardware_keys(devices, strategy, accelerator, precision)
    training.start_training(
        "classification", config, model or "mptsnet", assignments, experiment, hardware, out, resume
    )


def _names_dataset(config: str | None, assignments: list[str] | None) -> bool:
    """Whether the user's own file or --set names the data set; that of a shipped configuration is only a default."""
    from seqattn.experiment.loading import is_file_name

    keys = {assignment.partition("=")[0].strip() for assignment in assignments or []}
    return bool(keys & {"data", "data.dataset"}) or (config is not None and is_file_name(config))


def _only_dataset(data_dir: Path) -> str:
    from seqattn.data.archive import datasets_in

    names = datasets_in(data_dir)
    if not names:
        raise SeqattnError(f"{data_dir} holds no NAME_TRAIN.ts with its NAME_TEST.ts: check the path, or add --dataset")
    if len(names) > 1:
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise SeqattnError(f"{data_dir} holds {len(names)} data sets ({listed}): choose one with --dataset")
    return names[0]


def evaluate(run: training.Run, data_dir: DataDir = None) -> None:
    """Evaluate a run on the TEST set of its data set and print the metrics as JSON."""
    from seqattn.experiment.evaluation import evaluate_run

    typer.echo(json.dumps(evaluate_run(run, str(data_dir) if data_dir else None), indent=2))


def predict(
    run: training.Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .ts or .arff file, or a data set's name: its TEST.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("predictions.csv"),
    explain: Annotated[bool, typer.Option("--explain", help="Also draw what the model looked at, per series.")] = False,
) -> None:
    """Predict the class of every series in FILE: case, label and one probability per class."""
    from seqattn.experiment.evaluation import predict_file

    predict_file(run, file, output, explain)
