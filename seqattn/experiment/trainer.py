"""The Lightning Trainer of every run, and `fit`, which leaves a run that can be resumed."""

import importlib.util
import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerStatus

from seqattn.errors import SeqattnError
from seqattn.experiment.callbacks import EpochLines, EpochSeed, EpochTable, PlateauStep, RunCheckpoint, StopEarly
from seqattn.experiment.config import TrainerConfig
from seqattn.experiment.run_directory import RunDirectory, atomic_write, disk_sentence

NOT_THE_USERS_CONCERN = (
    r".*does not have many workers.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*smaller than the logging interval.*",
    r".*LeafSpec.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*`tensorboardX` has been removed.*",
    r".*Grad strides do not match bucket view strides.*",
    r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # torchmetrics has reduced what the tasks log
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its final place and rename it; Lightning copies it there from the system's /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        atomic_write(Path(path), lambda file: torch.save(checkpoint, file))


def build_trainer(
    config: TrainerConfig,
    run: RunDirectory,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    table: Path | None = None,
    monitor: str | None = None,
    mode: Literal["max", "min"] = "max",
    callbacks: Sequence[Callback] = (),
    find_unused_parameters: bool = False,
) -> lightning.Trainer:
    """Return a Trainer that writes `last.ckpt`, and with `monitor` `best.ckpt`, at the end of every epoch.

    Args:
        seed: every epoch draws its random numbers from (seed, epoch, rank).
        checkpoint_dir: default `run.checkpoints`; one folder per fold keeps folds apart.
        table: the CSV with one row per epoch, default `run.metrics`.
        monitor: the logged metric that `mode` makes best; early stopping watches it where `config.patience` is set.
        callbacks: further ones.
        find_unused_parameters: of distributed training, for modules that do not use every parameter in every backward.

    Raises:
        SeqattnError: the machine has no such device, or `config.patience` is set without a monitor.
    """
    accelerator = check_devices(config)
    quiet_lightning()
    folder = checkpoint_dir or run.checkpoints
    rows = EpochTable(table or run.metrics)
    terminal = sys.stderr.isatty()
    own: list[Callback] = [EpochSeed(seed), PlateauStep(), rows, *([] if terminal else [EpochLines(rows)]), *callbacks]
    if config.patience is not None:
        if monitor is None:
            raise SeqattnError("trainer.patience needs a validation metric to watch: set it to null")
        own.append(StopEarly(monitor, patience=config.patience, mode=mode))
    if monitor is not None:
        own.append(RunCheckpoint(folder / "best.ckpt", monitor, mode))
    own.append(RunCheckpoint(folder / "last.ckpt"))
    return lightning.Trainer(
        max_epochs=config.max_epochs,
        accelerator=accelerator,
        devices=config.devices,
        strategy=_strategy(config, find_unused_parameters),
        precision=config.precision,
        gradient_clip_val=config.gradient_clip,
        callbacks=own,
        plugins=[AtomicCheckpointIO()],
        logger=_logger(run, folder),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=terminal,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    run: RunDirectory,
    checkpoint: Path | None = None,
) -> None:
    """Train, from `checkpoint` where one is given.

    Raises:
        SeqattnError: the checkpoint is missing, damaged or of another model.
        KeyboardInterrupt: Ctrl-C; its message says how to resume.
    """
    if checkpoint is not None:
        check_weights(read_checkpoint(checkpoint), module, checkpoint)
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except OSError as error:  # a logger's file
        raise SeqattnError(disk_sentence(run.path, error)) from error
    except SystemExit:
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
        raise KeyboardInterrupt(f"interrupted; resume with: seqattn train {run.task()} --resume {run.path}") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint on the CPU.

    Raises:
        SeqattnError: the file is missing, unreadable or not a checkpoint.
    """
    if not path.is_file():
        raise SeqattnError(
            f"there is no checkpoint {path}, which a run has after its first epoch: put it back, or train the run again"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"]
    except PermissionError as error:
        raise SeqattnError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except Exception as error:  # whatever the damage
        raise SeqattnError(
            f"{path} is not a readable checkpoint (damaged, cut short or another file): put back the one this run "
            "wrote, or train the run again"
        ) from error
    return checkpoint


def check_weights(checkpoint: dict[str, Any], module: torch.nn.Module, path: Path) -> None:
    """Compare names and shapes of a checkpoint's weights with the module's.

    Raises:
        SeqattnError: they differ.
    """
    stored = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    different = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if different:
        name = different[0]
        shapes = f"{name} is {stored.get(name, 'absent')} in it and {wanted.get(name, 'absent')} in the model"
        raise SeqattnError(f"{path} holds another model ({shapes}): use the configuration it was trained with")


def quiet_lightning() -> None:
    """Silence Lightning's advertising and the warnings that do not concern the user; errors and the rest stay."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOT_THE_USERS_CONCERN:
        warnings.filterwarnings("ignore", message=message)


def check_devices(config: TrainerConfig) -> str:
    """Return the accelerator, "cpu" or "gpu", that the configuration means on this machine.

    Raises:
        SeqattnError: the machine has no such device, too few, or cannot compute in that precision.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.accelerator == "gpu" and gpus == 0:
        raise SeqattnError("trainer.accelerator is gpu, but this machine has no CUDA device: use --accelerator cpu")
    if config.accelerator != "cpu" and 0 < gpus < config.devices:
        raise SeqattnError(f"trainer.devices is {config.devices}, but this machine has {gpus} GPU: lower --devices")
    accelerator = "cpu" if config.accelerator == "cpu" or gpus == 0 else "gpu"
    if accelerator == "cpu" and config.precision == "16-mixed":
        raise SeqattnError("trainer.precision 16-mixed needs a GPU: use --precision bf16-mixed or 32-true on the CPU")
    return accelerator


def _strategy(config: TrainerConfig, find_unused_parameters: bool) -> str | Strategy:
    if config.strategy == "ddp" or config.devices > 1:
        return DDPStrategy(broadcast_buffers=False, find_unused_parameters=find_unused_parameters)
    return "auto"


def _logger(run: RunDirectory, folder: Path) -> TensorBoardLogger | bool:
    if importlib.util.find_spec("tensorboard") is None:
        return False
    fold = folder.name if folder != run.checkpoints else ""
    return TensorBoardLogger(save_dir=run.path, name="tensorboard", version=fold)
