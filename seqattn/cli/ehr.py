"""`seqattn train|eval|predict ehr` and `seqattn ehr-codes`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from seqattn.cli import training
from seqattn.errors import SeqattnError

DataDir = Annotated[Path | None, typer.Option(help="Where a named data set lies (default: $SEQATTN_DATA).")]
Moved = Annotated[Path | None, typer.Option(help="Where the data lie now: a named data set, or the folder of tables.")]


def train(
    dataset: Annotated[
        str | None, typer.Option(help="physionet2012, physionet2019, mimic3-ihm, mimic3-pheno, synthetic or a folder.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="interleaved (default) or gru_d.")] = None,
    config: training.ConfigName = None,
    assignments: training.Assignments = None,
    data_dir: DataDir = None,
    out: training.Out = None,
    seed: training.Seed = None,
    selection: Annotated[str | None, typer.Option(help="Validation measure that chooses: auprc, auroc or f1.")] = None,
    devices: training.Devices = None,
    strategy: training.Strategy = None,
    accelerator: training.Accelerator = None,
    precision: training.Precision = None,
    resume: training.Resume = None,
) -> None:
    """Train a model of health records, evaluate it on TEST and write a run directory."""
    experiment = {
        "model.name": model,
        "data.dataset": dataset,
        "data.data_dir": str(data_dir) if data_dir else None,
        "seed": seed,
        "selection": selection,
    }
    default = {"gru_d": "gru-d"}.get(model or "", "series")
    hardware = training.hardware_keys(devices, strategy, accelerator, precision)
    training.start_training("ehr", config, default, assignments, experiment, hardware, out, resume)


def evaluate(run: training.Run, data_dir: Moved = None) -> None:
    """Evaluate a run on the TEST stays of its data again and print the measures as JSON."""
    from seqattn.experiment.ehr_evaluation import evaluate_run

    typer.echo(json.dumps(evaluate_run(run, str(data_dir) if data_dir else None), indent=2))


def predict(
    run: training.Run,
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A folder of tables, of MEDS or laid out as the run's data set; or a data set's name."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("predictions.csv"),
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out variables that the run does not know, and count them.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw, of the first 50 stays, what the model looked at.")
    ] = False,
    explain_ids: Annotated[
        str | None, typer.Option(metavar="ID,ID,...", help="Draw these stays instead of the first.")
    ] = None,
    explain_limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Draw the first N stays.")] = None,
    notes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Note vectors of these stays, or none, for a run trained on such a file."),
    ] = None,
) -> None:
    """Predict the risk of every stay in DIR: id and one probability per label."""
    from seqattn.experiment.ehr_evaluation import predict_folder

    if explain_ids is not None and explain_limit is not None:
        raise SeqattnError("--explain-ids and --explain-limit both say which stays are drawn: give one of them")
    ids = None if explain_ids is None else [name.strip() for name in explain_ids.split(",") if name.strip()]
    wanted = explain or explain_ids is not None or explain_limit is not None
    predict_folder(run, dataset, output, "ignore" if ignore_unknown else "error", wanted, notes, ids, explain_limit)


def codes(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A MEDS folder, or a folder of long tables.")],
    top: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the N most frequent.")] = None,
) -> None:
    """List the codes of a MEDS folder, or the variables of long tables, the most frequent first.

    Columns: rows, rows with a number, code. It helps to write a code map: which codes are which variable.
    """
    from seqattn.data.clinical.meds import code_frequencies

    listed = code_frequencies(folder)
    typer.echo(f"{'rows':>12}  {'numbers':>12}  code")
    for code, rows, numbers in listed[:top]:
        typer.echo(f"{rows:>12,}  {numbers:>12,}  {code}")
    if top is not None and top < len(listed):
        typer.echo(f"{len(listed) - top:,} more codes", err=True)
