"""Runs that are killed and resumed, compared with runs that never were."""

from pathlib import Path
from typing import Any

import torch

# Python that makes a task stop for good in its third epoch, at the second batch, for the test to kill it
FREEZE = """
import pathlib, time
from {module} import {task} as Task
step = Task.training_step
def frozen_step(self, batch, batch_idx):
    if (self.current_epoch, batch_idx) == (2, 1):
        pathlib.Path({marker!r}).touch()
        time.sleep(600)
    return step(self, batch, batch_idx)
Task.training_step = frozen_step
"""


def freezing(module: str, task: str, marker: Path) -> str:
    """The prelude of a process whose task touches `marker` and then waits."""
    return FREEZE.format(module=module, task=task, marker=str(marker))


def tensors_of(run: Path, name: str) -> dict[str, Any]:
    """What a checkpoint of a run holds besides its callbacks."""
    stored = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return {key: stored[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")}


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Equal structures, tensors bit for bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where
