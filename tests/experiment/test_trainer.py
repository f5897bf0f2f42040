import csv
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch.utils.data import DataLoader, TensorDataset

from seqattn.errors import SeqattnError
from seqattn.experiment import trainer as trainer_module
from seqattn.experiment.config import TrainerConfig
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.trainer import build_trainer, check_weights, fit, read_checkpoint

CPU = TrainerConfig(max_epochs=2, accelerator="cpu")


class Line(lightning.LightningModule):
    def __init__(self, width=3, monitor=None):
        super().__init__()
        self.line = torch.nn.Linear(width, 1)
        self.monitor = monitor

    def training_step(self, batch, batch_idx):
        loss = self.line(batch[0]).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/score", -self.current_epoch * 1.0)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.monitor is None:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor}}


class Data(lightning.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(6, 3)), 2)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(6, 3)), 2)


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", "classification", "x")


def test_a_run_writes_a_table_checkpoints_and_one_line_per_epoch(run, capsys, recwarn):
    trainer = build_trainer(CPU, run, seed=0, monitor="val/score")
    fit(trainer, Line(), Data(), run)
    rows = list(csv.DictReader(run.metrics.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "val/score", "train/loss", "lr", "seconds"]
    assert read_checkpoint(run.best)["epoch"] == 0
    assert read_checkpoint(run.last)["epoch"] == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert captured.out == ""
    assert not [str(warning.message) for warning in recwarn]


def test_patience_stops_and_a_fold_keeps_its_own_files(run):
    config = CPU.model_copy(update={"max_epochs": 20, "patience": 2})
    folder, table = run.checkpoints / "fold-1", run.path / "metrics-1.csv"
    trainer = build_trainer(config, run, seed=0, monitor="val/score", checkpoint_dir=folder, table=table)
    fit(trainer, Line(), Data(), run)
    assert len(table.read_text().splitlines()) == 1 + 3
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert not run.last.exists()


def test_without_a_monitor_there_is_only_the_last_checkpoint(run):
    fit(build_trainer(CPU, run, seed=0), Line(), Data(), run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["last.ckpt"]
    with pytest.raises(SeqattnError, match=r"trainer\.patience"):
        build_trainer(CPU.model_copy(update={"patience": 1}), run, seed=0)


def test_a_plateau_on_an_unlogged_metric_is_refused(run):
    with pytest.raises(RuntimeError, match="monitors 'val/loss', which is not logged; logged: train/loss, val/score"):
        fit(build_trainer(CPU, run, seed=0), Line(monitor="val/loss"), Data(), run)


def test_the_epoch_s_numbers_depend_on_seed_and_epoch_alone(tmp_path):
    class Draw(Callback):
        def __init__(self):
            self.drawn = []

        def on_train_batch_start(self, *arguments):
            self.drawn.append(torch.rand(()).item())

    def drawn(name, seed):
        run, callback = RunDirectory.create(tmp_path / name, "t", "x"), Draw()
        torch.rand(len(name))
        fit(build_trainer(CPU, run, seed=seed, callbacks=[callback]), Line(), Data(), run)
        return callback.drawn

    first = drawn("a", 0)
    assert first == drawn("longer", 0)
    assert first != drawn("b", 1)
    assert len(set(first)) == 6


def test_a_moved_run_remembers_its_best_epoch(run, tmp_path):
    fit(build_trainer(CPU, run, seed=0, monitor="val/score"), Line(), Data(), run)
    moved = RunDirectory(run.path.rename(tmp_path / "moved"))
    longer = CPU.model_copy(update={"max_epochs": 4})
    trainer = build_trainer(longer, moved, seed=0, monitor="val/score")
    fit(trainer, Line(), Data(), moved, moved.last)
    assert read_checkpoint(moved.last)["epoch"] == 3
    assert read_checkpoint(moved.best)["epoch"] == 0
    assert trainer.checkpoint_callback.best_model_path == str(moved.best)
    assert not run.path.exists()


def test_strategies(run):
    assert isinstance(build_trainer(CPU.model_copy(update={"devices": 2}), run, seed=0).strategy, DDPStrategy)
    ddp = build_trainer(CPU.model_copy(update={"strategy": "ddp"}), run, seed=0)
    assert isinstance(ddp.strategy, DDPStrategy)


@pytest.mark.parametrize(
    ("gpus", "changes", "words"),
    [
        (0, {"accelerator": "gpu"}, "no CUDA device"),
        (0, {"precision": "16-mixed"}, "needs a GPU"),
        (1, {"accelerator": "gpu", "devices": 2}, "this machine has 1 GPU"),
    ],
)
def test_devices_the_machine_lacks_are_one_sentence(run, monkeypatch, gpus, changes, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(SeqattnError, match=words):
        build_trainer(TrainerConfig(**changes), run, seed=0)


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_one_sentence(run):
    fit(build_trainer(CPU, run, seed=0), Line(), Data(), run)
    with pytest.raises(SeqattnError, match=r"line\.weight is \(1, 3\) in it and \(1, 4\) in the model"):
        fit(build_trainer(CPU, run, seed=0), Line(width=4), Data(), run, run.last)
    with pytest.raises(SeqattnError, match=r"line\.bias is .* in it and absent in the model"):
        check_weights(read_checkpoint(run.last), torch.nn.Identity(), run.last)
    with pytest.raises(SeqattnError, match=r"there is no checkpoint .*: put it back, or train the run again"):
        read_checkpoint(run.best)


def test_whatever_the_damage_a_checkpoint_is_not_readable(run):
    fit(build_trainer(CPU, run, seed=0), Line(), Data(), run)
    whole = run.last.read_bytes()
    for damage in (b"", b"weights", whole[:100], whole[:-100], whole[:2000] + bytes(500) + whole[2500:]):
        run.last.write_bytes(damage)
        with pytest.raises(SeqattnError) as caught:
            read_checkpoint(run.last)
        assert str(caught.value) == (
            f"{run.last} is not a readable checkpoint (damaged, cut short or another file): put back the one this run "
            "wrote, or train the run again"
        )


def test_lightning_s_advice_on_reduced_metrics_is_not_shown():
    advice = (
        "It is recommended to use `self.log('val_loss', ..., sync_dist=True)` when logging on epoch level in "
        "distributed setting to accumulate the metric across devices."
    )
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        trainer_module.quiet_lightning()
        warnings.warn(advice, PossibleUserWarning, stacklevel=1)
        warnings.warn("another warning", PossibleUserWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another warning"]


def test_tensorboard_is_optional(run, monkeypatch):
    assert (build_trainer(CPU, run, seed=0).logger is None) is (
        not trainer_module.importlib.util.find_spec("tensorboard")
    )
    monkeypatch.setattr(trainer_module.importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_trainer(CPU, run, seed=0).logger is None
