"""Trains a tiny network: `resume_worker.py RUN SCHEDULER EPOCHS [options]`.

Without arguments it reads such lines from stdin and forks for each, which saves importing torch again, and answers with
the exit code; the child's output goes to RUN.log.
"""

import argparse
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from seqattn.experiment.config import TrainerConfig
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.trainer import build_trainer, fit

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background is started with it ignored


class EpochSampler(torch.utils.data.Sampler):
    def __init__(self, size):
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.size

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())


class Data(lightning.LightningDataModule):
    def __init__(self, workers):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(40, 6, generator=generator)
        self.set = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
        self.workers = workers

    def train_dataloader(self):
        sampler = EpochSampler(len(self.set))
        sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return DataLoader(self.set, 8, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(self.set, 8)


class Tiny(lightning.LightningModule):
    def __init__(self, scheduler, death=None):
        super().__init__()
        self.scheduler, self.death = scheduler, death
        self.net = torch.nn.Sequential(
            torch.nn.Linear(6, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.4),
            torch.nn.Linear(16, 2),
        )

    def training_step(self, batch, batch_idx):
        if self.death and (self.current_epoch, batch_idx) == (self.death[0], 2):
            os.kill(os.getpid(), self.death[1])
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val/loss", loss)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        if self.scheduler == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
        return {"optimizer": optimizer, "lr_scheduler": cosine}


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("scheduler")
    parser.add_argument("epochs", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die")
    parser.add_argument("--patience", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lightning.seed_everything(3, verbose=False)
    run = RunDirectory(options.run)
    run.path.mkdir(exist_ok=True)
    run.config.write_text("task: classification\n")
    death = options.die and (int(options.die.split(":")[0]), signal.Signals[options.die.split(":")[1]])
    config = TrainerConfig(
        max_epochs=options.epochs, patience=options.patience, accelerator="cpu", devices=options.devices
    )
    trainer = build_trainer(config, run, seed=5, monitor="val/loss", mode="min")
    module = Tiny(options.scheduler, death)
    fit(trainer, module, Data(options.workers), run, run.last if options.resume else None)
    if trainer.is_global_zero:
        print(f"finished at epoch {trainer.current_epoch}")


def serve():
    for line in sys.stdin:
        arguments = shlex.split(line)
        child = os.fork()
        if child == 0:
            log = os.open(f"{arguments[0]}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 1
            try:
                main(arguments)
                code = 0
            except KeyboardInterrupt as error:
                print(f"KeyboardInterrupt: {error}")
                code = 130
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:]) if sys.argv[1:] else serve()
