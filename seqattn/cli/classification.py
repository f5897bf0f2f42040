"""`seqattn train|eval|predict classification`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from seqattn.cli.interruption import interruptible
from seqattn.cli.overrides import assign
from seqattn.errors import SeqattnError

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that 'seqattn train' wrote.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of NAME_TRAIN.ts and NAME_TEST.ts files.")]


def train(
    dataset: Annotated[str | None, typer.Option(help="A UEA/UCR data set, such as BasicMotions.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model (default: mptsnet).")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A shipped configuration or a YAML file.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as model.k=3.")
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: in runs/classification).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split, the weights and the training.")] = None,
    protocol: Annotated[str | None, typer.Option(help="holdout, or paper: select on TEST as published.")] = None,
    devices: Annotated[int | None, typer.Option(help="Number of processes or GPUs.")] = None,
    strategy: Annotated[str | None, typer.Option(help="auto or ddp.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu or gpu.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed, ...")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")] = None,
) -> None:
    """Train a classifier, evaluate it on TEST and write a run directory."""
    hardware = {
        "trainer.devices": devices,
        "trainer.strategy": strategy,
        "trainer.accelerator": accelerator,
        "trainer.precision": precision,
    }
    experiment = {
        "model.name": model,
        "data.dataset": dataset,
        "data.data_dir": str(data_dir.absolute()) if data_dir else None,
        "seed": seed,
        "protocol": protocol,
    }
    if resume is not None and (config or assignments or out or assign(experiment)):
        raise SeqattnError(f"--resume takes everything but the devices from {resume}: leave the other options out")
    overrides = [*(assignments or []), *assign(experiment | hardware)]
    with interruptible():
        _train(config or model or "mptsnet", overrides, out, resume)


def _train(source: str, overrides: list[str], out: Path | None, resume: Path | None) -> None:
    from seqattn.experiment.config import ClassificationConfig
    from seqattn.experiment.loading import load_config
    from seqattn.experiment.run_directory import RunDirectory

    if resume is not None:
        settings = RunDirectory.open(resume).read_config(ClassificationConfig, overrides)
    else:
        settings = load_config(ClassificationConfig, source, overrides, "classification")
    from seqattn.experiment.classification import train_run  # only now: it imports torch

    train_run(settings, out, resume)


def evaluate(run: Run, data_dir: DataDir = None) -> None:
    """Evaluate a run on the TEST set of its data set and print the metrics as JSON."""
    from seqattn.experiment.evaluation import evaluate_run

    typer.echo(json.dumps(evaluate_run(run, str(data_dir) if data_dir else None), indent=2))


def predict(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .ts or .arff file, or a data set's name: its TEST.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("predictions.csv"),
    explain: Annotated[bool, typer.Option("--explain", help="Also draw what the model looked at, per series.")] = False,
) -> None:
    """Predict the class of every series in FILE: case, label and one probability per class."""
    from seqattn.experiment.evaluation import predict_file

    predict_file(run, file, output, explain)
