import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from uea_files import HEADER, TEST, write_dataset

from seqattn.data.samplers import EvaluationSampler, ShuffleSampler
from seqattn.data.series import SeriesSet
from seqattn.data.uea import SeriesDataset, UEADataModule, check_compatible
from seqattn.errors import SeqattnError

REAL_DATA = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve()

pytestmark = pytest.mark.usefixtures("own_places")


def prepared(dataset: str = "BasicMotions", data_dir: Path | None = None, **options: object) -> UEADataModule:
    module = UEADataModule(dataset, str(data_dir) if data_dir else None, **options)  # type: ignore[arg-type]
    module.setup("fit")
    return module


def labelled(labels: str) -> SeriesSet:
    cases = len(labels)
    values = np.arange(2.0 * cases, dtype=np.float32).reshape(cases, 2, 1)
    return SeriesSet(values, np.full(cases, 2), np.array(list(labels)), tuple(sorted(set(labels))))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 5, 8, 23])
def test_samplers_over_processes(size: int, world: int) -> None:
    evaluation = [list(EvaluationSampler(size, rank=rank, world=world)) for rank in range(world)]
    assert sorted(chain(*evaluation)) == list(range(size))
    samplers = [ShuffleSampler(size, seed=3, rank=rank, world=world) for rank in range(world)]
    training = [list(sampler) for sampler in samplers]
    assert [len(part) for part in training] == [len(samplers[0])] * world
    assert set(chain(*training)) == set(range(size))
    assert sum(map(len, training)) < size + world


def test_shuffle_depends_on_seed_and_epoch_alone() -> None:
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        sampler = ShuffleSampler(50, seed)
        sampler.set_epoch(epoch)
        orders[seed, epoch] = tuple(sampler)
        assert tuple(sampler) == orders[seed, epoch]
    assert len(set(orders.values())) == 4


class Recorder(LightningModule):
    """A one-weight model that notes the cases of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        self.seen[-1] += batch["index"].tolist()
        return self.weight**2

    def validation_step(self, batch: dict[str, Tensor], number: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def quiet_trainer(epochs: int) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, use_distributed_sampler=False, **quiet
    )


def test_resumed_run_repeats_the_order(tmp_path: Path) -> None:
    module = prepared(batch_size=8)
    whole, first, resumed = Recorder(), Recorder(), Recorder()
    quiet_trainer(4).fit(whole, datamodule=module)
    assert len({tuple(epoch) for epoch in whole.seen}) == 4
    trainer = quiet_trainer(2)
    trainer.fit(first, datamodule=module)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    quiet_trainer(4).fit(
        resumed, datamodule=UEADataModule("BasicMotions", batch_size=8), ckpt_path=tmp_path / "two.ckpt"
    )
    assert first.seen + resumed.seen == whole.seen


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "mine")


def test_batches(toy: Path) -> None:
    module = prepared("Toy", toy, fold=None, batch_size=3)
    assert (module.classes, module.num_classes, module.in_channels) == (("a", "b", "c"), 3, 2)
    assert (module.seq_len, module.min_length) == (4, 1)
    assert module.val_dataloader() == []
    batches = list(module.train_dataloader())
    assert [batch["x"].shape for batch in batches] == [(3, 4, 2), (1, 4, 2)]
    for batch in batches:
        assert {name: values.dtype for name, values in batch.items()} == {
            "x": torch.float32,
            "lengths": torch.int64,
            "label": torch.int64,
            "index": torch.int64,
        }
        for x, length, label, index in zip(*(batch[name] for name in ("x", "lengths", "label", "index")), strict=True):
            assert length == module.train_set.lengths[index]
            assert module.classes[label] == module.train_set.labels[index]
            assert (x[length:] == 0).all()
            expected = torch.from_numpy(module.train_set.values[index, :length])
            torch.testing.assert_close(x[:length], expected, rtol=0, atol=0, equal_nan=True)
    (test,) = module.test_dataloader()
    assert test["lengths"].tolist() == [4, 1]
    assert test["label"].tolist() == [1, 0]


def test_workers_give_the_same_batches() -> None:
    alone, helped = (list(prepared(num_workers=workers).train_dataloader()) for workers in (0, 1))
    for first, second in zip(alone, helped, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_holdout_folds_and_paper() -> None:
    holdout = prepared()
    assert len(holdout.train_indices) == 32
    assert Counter(holdout.train_set.labels[holdout.val_indices].tolist()) == dict.fromkeys(holdout.classes, 2)
    assert sorted(evaluated(holdout.val_dataloader())) == holdout.val_indices.tolist()
    fold = prepared(folds=4, fold=3)
    assert len(fold.val_indices) == 10
    paper = prepared(protocol="paper")
    assert len(paper.train_indices) == 40
    (validation,), (test,) = paper.val_dataloader(), paper.test_dataloader()
    assert torch.equal(validation["x"], test["x"])
    assert len(test["x"]) == 40


def evaluated(loader: object) -> Iterator[int]:
    for batch in loader:  # type: ignore[attr-defined]
        yield from batch["index"].tolist()


def test_evaluation_over_processes_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = prepared("JapaneseVowels")
    seen: list[int] = []
    for rank in range(3):
        monkeypatch.setattr("seqattn.data.uea.rank_and_world", lambda rank=rank: (rank, 3))
        seen += evaluated(module.test_dataloader())
    assert sorted(seen) == list(range(370))
    monkeypatch.setattr("seqattn.data.uea.rank_and_world", lambda: (0, 400))
    with pytest.raises(SeqattnError, match="use fewer devices"):
        module.test_dataloader()


def test_setup_reads_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = prepared("Toy", toy)
    first = module.train_set
    monkeypatch.setattr("seqattn.data.uea.load_series", None)
    module.setup("test")
    assert module.train_set is first


def test_statistics_are_of_observed_training_values_only(toy: Path) -> None:
    module = prepared("Toy", toy, fold=None)
    mean, std = module.statistics()
    observed = [[1, 2, 3, 4, 5, 2, 2, 3, 3], [7, 9, 1, 1, 1, 3, 1, 1]]
    np.testing.assert_allclose(mean, [np.mean(values) for values in observed], rtol=1e-12)
    np.testing.assert_allclose(std, [np.std(values) for values in observed], rtol=1e-12)
    part = prepared("Toy", toy, folds=2, fold=0)
    rows = module.train_set.subset(part.train_indices)
    values = [row[:length, 0] for row, length in zip(rows.values, rows.lengths, strict=True)]
    np.testing.assert_allclose(part.statistics()[0][0], np.concatenate(values).mean(), rtol=1e-6)


def test_constant_channel_has_deviation_one(tmp_path: Path) -> None:
    train = HEADER + "0.1,0.1:1,2:a\n0.1,0.1:1,2:b\n"
    module = prepared("Toy", write_dataset(tmp_path / "mine", train=train), fold=None)
    assert module.statistics()[1] == [1.0, 0.5]


BAD_DATA = {
    "test label": ({"test": TEST + "1:2:c\n"}, r"Toy_TEST.ts, case 3: label 'c' is not in the training data \(a, b\)"),
    "channels": ({"test": HEADER + "1:a\n"}, "Toy_TEST.ts has 1 channels, the training data 2"),
    "empty channel": ({"train": HEADER + "1:?:a\n2:?:b\n2:?:b\n"}, "Toy_TRAIN.ts: channel 2 has no value"),
    "one class": ({"train": HEADER + "1:1:a\n2:2:a\n"}, "one class only"),
    "one case": ({"train": HEADER + "1:1:a\n"}, "one class only"),
    "single cases": ({"train": HEADER + "1:1:a\n2:2:b\n"}, "single training case, .* use --protocol paper"),
    "unlabelled train": ({"train": "@classLabel false\n@data\n1:1\n"}, "Toy_TRAIN.ts has no class labels"),
    "unlabelled test": ({"test": "@classLabel false\n@data\n1:1\n"}, "Toy_TEST.ts has no class labels"),
    "bad line": ({"test": TEST + "1:x:a\n"}, "Toy_TEST.ts, line 5"),
}


@pytest.mark.parametrize(("files", "problem"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    folder = write_dataset(tmp_path / "mine", **files)
    with pytest.raises(SeqattnError, match=problem):
        prepared("Toy", folder)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"eval_batch_size": 0},
        {"folds": 0},
        {"fold": 1},
        {"folds": 3, "fold": 3},
        {"seed": -1},
        {"num_workers": -1},
        {"validation_fraction": 1.0},
        {"validation_fraction": float("nan")},
        {"protocol": "x"},
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(SeqattnError, match=next(reversed(options))):
        UEADataModule("BasicMotions", **options)  # type: ignore[arg-type]


def test_check_compatible() -> None:
    series = labelled("aab")
    check_compatible(series, in_channels=1, classes=["a", "b"], source="new.ts")
    check_compatible(
        SeriesSet(series.values, series.lengths, np.array(["", "", ""]), ()), in_channels=1, classes=["a"], source="f"
    )
    with pytest.raises(SeqattnError, match=r"new\.ts has 1 channels, the training data 2"):
        check_compatible(series, in_channels=2, classes=["a", "b"], source="new.ts")
    with pytest.raises(SeqattnError, match=r"new\.ts, case 3: label 'b' is not in the training data \(a\)"):
        check_compatible(series, in_channels=1, classes=["a"], source="new.ts")


def test_dataset_without_labels_and_single_items() -> None:
    series = labelled("ab")
    unlabelled = SeriesSet(series.values, series.lengths, np.array(["", ""]), ())
    item = SeriesDataset(unlabelled, ["a", "b"], seq_len=5)[1]
    assert item["x"].shape == (5, 1)
    assert item["label"] == -1
    assert SeriesDataset(series, ["a", "b"], seq_len=1)[1]["x"].shape == (2, 1)


@pytest.mark.parametrize("name", ["PenDigits", "StandWalkJump", "FingerMovements"])
def test_real_data(name: str) -> None:
    if not (REAL_DATA / "uea" / name).is_dir():
        pytest.skip(f"{name} is not in SEQATTN_DATA")
    module = prepared(name, REAL_DATA)
    assert set(module.train_set.labels) == set(module.test_set.labels) == set(module.classes)
    mean, std = module.statistics()
    assert np.isfinite(mean).all()
    assert min(std) > 0
