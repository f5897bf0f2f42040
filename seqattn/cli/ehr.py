"""`seqattn train|eval|predict ehr` and `seqattn ehr-codes`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from seqattn.cli.interruption import interruptible
from seqattn.cli.overrides import assign
from seqattn.errors import SeqattnError

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that 'seqattn train' wrote.")]
DataDir = Annotated[Path | None, typer.Option(help="Where a named data set lies.")]


def train(
    dataset: Annotated[
        str | None, typer.Option(help="physionet2012, physionet2019, mimic3-ihm, mimic3-pheno, synthetic or a folder.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="interleaved (default) or gru_d.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A shipped configuration or a YAML file.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as model.gate=patient.")
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: in runs/ehr).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of splits, weights and training.")] = None,
    selection: Annotated[str | None, typer.Option(help="Validation measure that chooses: auprc, auroc or f1.")] = None,
    devices: Annotated[int | None, typer.Option(help="Number of processes or GPUs.")] = None,
    strategy: Annotated[str | None, typer.Option(help="auto or ddp.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu or gpu.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed, ...")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")] = None,
) -> None:
    """Train a model of health records, evaluate it on TEST and write a run directory."""
    hardware = {
        "trainer.devices": devices,
        "trainer.strategy": strategy,
        "trainer.accelerator": accelerator,
        "trainer.precision": precision,
    }
    experiment = {
        "model.name": model,
        "data.dataset": str(Path(dataset).absolute()) if dataset and Path(dataset).is_dir() else dataset,
        "data.data_dir": str(data_dir.absolute()) if data_dir else None,
        "seed": seed,
        "selection": selection,
    }
    if resume is not None and (config or assignments or out or assign(experiment)):
        raise SeqattnError(f"--resume takes everything but the devices from {resume}: leave the other options out")
    overrides = [*(assignments or []), *assign(experiment | hardware)]
    with interruptible():
        _train(config or {"gru_d": "gru-d"}.get(model or "", "series"), overrides, out, resume)


def _train(source: str, overrides: list[str], out: Path | None, resume: Path | None) -> None:
    from seqattn.experiment.ehr_config import EhrConfig
    from seqattn.experiment.loading import load_config
    from seqattn.experiment.run_directory import RunDirectory

    if resume is not None:
        settings = RunDirectory.open(resume).read_config(EhrConfig, overrides)
    else:
        settings = load_config(EhrConfig, source, overrides, "ehr")
    from seqattn.experiment.ehr import train_run  # only now: it imports torch

    train_run(settings, out, resume)


def evaluate(run: Run, data_dir: DataDir = None) -> None:
    """Evaluate a run on the TEST stays of its data and print the measures as JSON."""
    from seqattn.experiment.ehr_evaluation import evaluate_run

    typer.echo(json.dumps(evaluate_run(run, str(data_dir) if data_dir else None), indent=2))


def predict(
    run: Run,
    dataset: Annotated[str, typer.Argument(metavar="DIR", help="A folder of tables or of MEDS, or a data set's name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("predictions.csv"),
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out variables that the run does not know.")
    ] = False,
) -> None:
    """Predict the risk of every stay in DIR: id and one probability per label."""
    from seqattn.experiment.ehr_evaluation import predict_folder

    predict_folder(run, dataset, output, "ignore" if ignore_unknown else "error")
