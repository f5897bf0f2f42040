"""Callbacks that make resuming exact and show a run's progress."""

import csv
import io
import random
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch.optim.lr_scheduler import ReduceLROnPlateau

from seqattn.experiment.run_directory import atomic_write_text

Module = lightning.LightningModule


class EpochSeed(Callback):
    """Seed Python, NumPy and torch from (seed, epoch, rank) at the start of every training epoch.

    A resumed run then draws what the uninterrupted one drew.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Module) -> None:
        self._seed(trainer)

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        # iterating a loader draws a number, after the epoch's start in a running fit but before it in a resumed one
        if batch_idx == 0:
            self._seed(trainer)

    def _seed(self, trainer: lightning.Trainer) -> None:
        entropy = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        words = [int(word) for word in entropy.generate_state(3)]
        random.seed(words[0])
        np.random.seed(words[1])  # noqa: NPY002
        torch.manual_seed(words[2])


class PlateauStep(Callback):
    """Step every ReduceLROnPlateau of the module before the epoch's checkpoint is written.

    Lightning steps it after, and not at all on resuming, so that its own checkpoints lag one epoch behind.
    """

    def on_fit_start(self, trainer: lightning.Trainer, module: Module) -> None:
        for config in self._configs(trainer):
            config.interval = "plateau-step"  # an interval Lightning never steps

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Module) -> None:
        for config in self._configs(trainer):
            if config.monitor not in trainer.callback_metrics:
                known = ", ".join(sorted(trainer.callback_metrics))
                raise RuntimeError(
                    f"ReduceLROnPlateau monitors {config.monitor!r}, which is not logged; logged: {known}"
                )
            module.lr_scheduler_step(config.scheduler, trainer.callback_metrics[config.monitor])

    @staticmethod
    def _configs(trainer: lightning.Trainer) -> list[Any]:
        return [config for config in trainer.lr_scheduler_configs if isinstance(config.scheduler, ReduceLROnPlateau)]


class StopEarly(EarlyStopping):
    """EarlyStopping that stays stopped when a run is resumed from a checkpoint written as it stopped."""

    def on_train_start(self, trainer: lightning.Trainer, module: Module) -> None:
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True


class RunCheckpoint(ModelCheckpoint):
    """One checkpoint file at the end of every epoch: the latest, or with `monitor` the best; it may be moved.

    The latest is also written before the first epoch, so that a run interrupted in it can be resumed.
    """

    def __init__(self, path: Path, monitor: str | None = None, mode: str = "min") -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.path = path

    def on_train_start(self, trainer: lightning.Trainer, module: Module) -> None:
        super().on_train_start(trainer, module)
        if self.monitor is None and trainer.global_step == 0:
            trainer.save_checkpoint(self.path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = str(Path(str(self.dirpath)) / self.path.name)
        moved = {key: here for key in ("best_model_path", "kth_best_model_path") if state_dict[key]}
        scores = dict.fromkeys([here] * bool(state_dict["best_k_models"]), state_dict["best_model_score"])
        super().load_state_dict({**state_dict, **moved, "best_k_models": scores, "dirpath": self.dirpath})


class EpochTable(Callback):
    """Write a CSV with one row per epoch: epoch, every logged epoch scalar, the epoch's learning rate, seconds.

    The rows travel in the checkpoint, so a resumed run continues the table. Only rank 0 writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._lr = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Module) -> None:
        self._start = time.perf_counter()
        self._lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else 0.0

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Module) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        seconds = round(time.perf_counter() - self._start, 3)
        self.rows.append({"epoch": trainer.current_epoch + 1, **logged, "lr": self._lr, "seconds": seconds})
        if trainer.is_global_zero:
            atomic_write_text(self.path, self._csv())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]

    def _csv(self) -> str:
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def read_table(path: Path) -> list[dict[str, float]]:
    """Return the rows that `EpochTable` wrote; a value an epoch did not log is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


class EpochLines(Callback):
    """Print the table's newest row as one plain line per epoch, for logs that hold no progress bar."""

    def __init__(self, table: EpochTable) -> None:
        self.table = table

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Module) -> None:
        if trainer.is_global_zero:
            row = dict(self.table.rows[-1])
            head = f"epoch {row.pop('epoch')}/{trainer.max_epochs}"
            seconds = row.pop("seconds")
            scalars = [f"{name} {value:.4g}" for name, value in row.items()]
            print("  ".join([head, *scalars, f"{seconds:.1f} s"]), file=sys.stderr, flush=True)
