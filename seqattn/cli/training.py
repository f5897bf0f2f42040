"""What the `train` commands of all tasks share: their options, and the way from options to a run."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from seqattn.cli.interruption import interruptible
from seqattn.errors import SeqattnError

ConfigName = Annotated[
    str | None, typer.Option("--config", metavar="NAME|FILE", help="A shipped configuration or a YAML file.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as trainer.max_epochs=10.")
]
Out = Annotated[Path | None, typer.Option(help="Run directory (default: a new one in runs/TASK).")]
Seed = Annotated[int | None, typer.Option(help="Seed of the split, the weights and the training.")]
Devices = Annotated[int | None, typer.Option(help="Number of processes or GPUs.")]
Strategy = Annotated[str | None, typer.Option(help="auto or ddp.")]
Accelerator = Annotated[str | None, typer.Option(help="auto, cpu or gpu.")]
Precision = Annotated[str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed, ...")]
Resume = Annotated[Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that 'seqattn train' wrote.")]


def start_training(
    task: str, config: str | None, default: str, assignments: list[str] | None, experiment: Mapping[str, Any],
    hardware: Mapping[str, Any], out: Path | None, resume: Path | None, check: Callable[[Any], None] | None = None,
) -> None:  # fmt: skip
    """Train a run of `task` and let Ctrl-C leave its sentence.

    config: that the user named, or `default`. experiment, hardware: dotted keys and the values of options, None where
    one was not given; a resumed run takes the hardware alone. check: called with the configuration before torch is
    imported, which takes seconds.

    Raises:
        SeqattnError: options beside --resume that belong to the run, and whatever the run refuses.
    """
    if resume is not None and (config or assignments or out or _assign(experiment)):
        raise SeqattnError(f"--resume takes everything but the devices from {resume}: leave the other options out")
    overrides = [*(assignments or []), *_assign(experiment), *_assign(hardware)]
    with interruptible():
        _train(task, config or default, overrides, out, resume, check)


def hardware_keys(
    devices: int | None, strategy: str | None, accelerator: str | None, precision: str | None
) -> dict[str, Any]:
    """The dotted keys of the options that say what to train on."""
    return {
        "trainer.devices": devices,
        "trainer.strategy": strategy,
        "trainer.accelerator": accelerator,
        "trainer.precision": precision,
    }


def _train(
    task: str, source: str, overrides: list[str], out: Path | None, resume: Path | None,
    check: Callable[[Any], None] | None,
) -> None:  # fmt: skip
    from seqattn.experiment.loading import load_config
    from seqattn.experiment.run_directory import RunDirectory
    from seqattn.experiment.tasks import TASKS

    schema = TASKS[task]
    if resume is not None:
        settings = RunDirectory.open(resume).read_config(schema, overrides)
    else:
        settings = load_config(schema, source, overrides, task)
    if check is not None:
        check(settings)
    importlib.import_module(f"seqattn.experiment.{task}").train_run(settings, out, resume)


def _assign(values: Mapping[str, Any]) -> list[str]:
    """Turn the options that were given into overrides; JSON keeps a text like 1e3 a text."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
