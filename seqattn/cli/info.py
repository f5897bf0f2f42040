"""`seqattn list` and `seqattn env`."""

from pathlib import Path
from typing import Annotated

import typer

listing = typer.Typer(help="List models, datasets or configurations.", no_args_is_help=True)


@listing.command("models")
def models() -> None:
    """List the models of every task."""
    from seqattn.experiment.loading import model_names
    from seqattn.experiment.tasks import TASKS

    for task, schema in TASKS.items():
        for name in model_names(schema):
            typer.echo(f"{task}  {name}")


@listing.command("configs")
def configs() -> None:
    """List the shipped configurations: the names --config takes."""
    from seqattn.experiment.loading import list_configs

    for task, name in list_configs():
        typer.echo(f"{task}  {name}")


@listing.command("datasets")
def datasets(
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of NAME_TRAIN.ts and NAME_TEST.ts files, or of health records.")
    ] = None,
) -> None:
    """List the data sets at hand without a network; other UEA/UCR names are downloaded when asked for.

    Those of health records come last, those that are not on this machine included.
    """
    from seqattn.data.archive import bundled_datasets, local_datasets
    from seqattn.experiment.ehr_listing import listed_datasets

    local = local_datasets(data_dir)
    for name in local:
        typer.echo(f"local    {name}")
    for name in bundled_datasets():
        if name not in local:
            typer.echo(f"bundled  {name}")
    for name, place in listed_datasets(data_dir).items():
        typer.echo(f"ehr      {name}  {place}")


def env() -> None:
    """Show versions, devices, and which kernel backends run here and why."""
    from seqattn.experiment.environment import describe_environment

    found = describe_environment()
    packages = {name: version or "not installed" for name, version in found["packages"].items()}
    rows = {"seqattn": found["seqattn"], "commit": found["commit"] or "unknown", "python": found["python"], **packages}
    rows |= {"platform": found["platform"], "cpu": f"{found['devices']['cpu']}, {found['devices']['threads']} threads"}
    rows |= {"gpus": ", ".join(found["devices"]["gpus"]) or "none"}
    for name, value in rows.items():
        typer.echo(f"{name:<14}{value}")
    for backend in found["backends"]:
        state = "runs" if backend["available"] else "does not run"
        typer.echo(f"{'backend':<14}{backend['name']} {state}: {backend['reason']}")
