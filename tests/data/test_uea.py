import os
import socket
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from torch import Tensor

from seqattn.data import archive
from seqattn.data.archive import bundled_datasets, find_split, local_datasets
from seqattn.data.cache import cache_folder, load_series
from seqattn.data.samplers import EvaluationSampler, ShuffleSampler
from seqattn.data.series import SeriesSet
from seqattn.data.splits import stratified_fold, stratified_split, suggested_folds
from seqattn.data.uea import SeriesDataset, UEADataModule, check_compatible
from seqattn.errors import SeqattnError

REAL_DATA = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve()
HEADER = "@classLabel true a b c\n@data\n"
TRAIN = HEADER + "1,2,3:7,?,9:a\n4,5:1,1:b\n2,2:1,3:a\n3,3:1,1:b\n"
TEST = HEADER + "1,2,3,4:1,2,3,4:b\n5:6:a\n"


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEQATTN_DATA", raising=False)
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")


def write_dataset(folder: Path, name: str = "Toy", train: str | None = TRAIN, test: str | None = TEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in (("TRAIN", train), ("TEST", test)):
        if text is not None:
            (folder / f"{name}_{split}.ts").write_text(text)
    return folder


def prepared(dataset: str = "BasicMotions", data_dir: Path | None = None, **options: object) -> UEADataModule:
    module = UEADataModule(dataset, str(data_dir) if data_dir else None, **options)  # type: ignore[arg-type]
    module.setup("fit")
    return module


def labelled(labels: str) -> SeriesSet:
    cases = len(labels)
    values = np.arange(2.0 * cases, dtype=np.float32).reshape(cases, 2, 1)
    return SeriesSet(values, np.full(cases, 2), np.array(list(labels)), tuple(sorted(set(labels))))


@pytest.mark.parametrize("place", ["", "Toy", "uea/Toy"])
@pytest.mark.parametrize("given_by", ["argument", "variable", "beside"])
def test_find_split_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, given_by: str) -> None:
    root = tmp_path / "work" / "shared" / "data" if given_by == "beside" else tmp_path / "root"
    folder = write_dataset(root / place)
    if given_by == "variable":
        monkeypatch.setenv("SEQATTN_DATA", str(root))
    data_dir = root if given_by == "argument" else None
    assert find_split("Toy", "TEST", data_dir).resolve() == folder / "Toy_TEST.ts"
    assert local_datasets(data_dir) == ["Toy"]


def test_data_dir_comes_before_the_bundled_files(tmp_path: Path) -> None:
    assert "sktime" in find_split("BasicMotions", "TRAIN").parts
    folder = write_dataset(tmp_path / "mine", "BasicMotions")
    assert find_split("BasicMotions", "TRAIN", folder).parent == folder


def test_bundled_datasets() -> None:
    names = bundled_datasets()
    assert {"BasicMotions", "JapaneseVowels", "GunPoint", "PLAID"} <= set(names)
    assert "Tecator" not in names
    for name in names:
        assert load_series(find_split(name, "TRAIN")).cases > 1


@pytest.mark.parametrize(("missing", "present"), [("TEST", "TRAIN"), ("TRAIN", "TEST")])
def test_one_split_is_missing(tmp_path: Path, missing: str, present: str) -> None:
    folder = write_dataset(tmp_path / "mine", **{missing.lower(): None})
    with pytest.raises(SeqattnError, match=f"has Toy_{present}.ts but no Toy_{missing}.ts"):
        find_split("Toy", "TRAIN", folder)


@pytest.mark.parametrize("name", ["basicmotion", "", "../x", "a\0b", "x" * 5000])
def test_unknown_dataset(name: str) -> None:
    with pytest.raises(SeqattnError, match="there is no data set") as caught:
        find_split(name, "TRAIN")
    assert name != "basicmotion" or "did you mean BasicMotions" in str(caught.value)


def test_missing_data_dir(tmp_path: Path) -> None:
    with pytest.raises(SeqattnError, match="no_such_folder does not exist"):
        find_split("BasicMotions", "TRAIN", tmp_path / "no_such_folder")


def test_failed_download_says_where_to_put_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(dataset: str, folder: str) -> None:
        assert socket.getdefaulttimeout() is not None
        raise RuntimeError("Name or service\nnot known")

    monkeypatch.setattr(archive, "_fetch", fail)
    before = socket.getdefaulttimeout()
    with pytest.raises(SeqattnError, match="no network") as caught:
        UEADataModule("Epilepsy", str(tmp_path)).prepare_data()
    for part in ("Epilepsy_TRAIN.ts", "Epilepsy_TEST.ts", str(tmp_path / "Epilepsy")):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() == before


def test_download_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(dataset: str, folder: str) -> None:
        write_dataset(Path(folder) / dataset, dataset)

    monkeypatch.setattr(archive, "_fetch", fetch)
    path = find_split("Epilepsy", "TEST")
    assert path.read_text() == TEST
    monkeypatch.delattr(archive, "_fetch")
    assert find_split("Epilepsy", "TEST") == path
    assert [folder.name for folder in (cache_folder() / "datasets").iterdir()] == ["Epilepsy"]


@settings(deadline=None)
@given(labels=st.text("abcd", min_size=2, max_size=80), fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_stratified_split(labels: str, fraction: float, seed: int) -> None:
    array = np.array(list(labels))
    counts = Counter(labels)
    if max(counts.values()) == 1:
        with pytest.raises(SeqattnError, match="single training case"):
            stratified_split(array, fraction, seed)
        return
    training, validation = stratified_split(array, fraction, seed)
    assert sorted([*training, *validation]) == list(range(len(labels)))
    assert len(validation) >= 1
    assert set(array[training]) == set(labels)
    for label, held in Counter(array[validation].tolist()).items():
        assert held <= min(np.ceil(counts[label] * fraction), counts[label] - 1)
    again = stratified_split(array, fraction, seed)
    assert again[1].tolist() == validation.tolist()


@settings(deadline=None)
@given(labels=st.text("abcd", min_size=2, max_size=60), folds=st.integers(2, 5), seed=st.integers(0, 9))
def test_folds_partition_the_cases(labels: str, folds: int, seed: int) -> None:
    array = np.array(list(labels))
    counts = Counter(labels)
    eligible = [case for case, label in enumerate(labels) if counts[label] > 1]
    if len(eligible) < folds:
        with pytest.raises(SeqattnError, match="use fewer folds"):
            stratified_fold(array, folds, 0, seed)
        return
    parts = [stratified_fold(array, folds, fold, seed) for fold in range(folds)]
    assert sorted(np.concatenate([validation for _, validation in parts])) == eligible
    for training, validation in parts:
        assert sorted([*training, *validation]) == list(range(len(labels)))
        assert set(array[training]) == set(labels)
        assert len(validation) in (len(eligible) // folds, len(eligible) // folds + 1)
    for label in set(labels):
        held = [int((array[validation] == label).sum()) for _, validation in parts]
        assert max(held) - min(held) <= 1


@pytest.mark.parametrize(
    ("labels", "folds"),
    [("ab" * 50, 1), ("ab" * 49, 4), ("aaabbbb", 3), ("aabb", 2), ("aaab", 2), ("abc", 1), ("a" * 99 + "b", 1)],
)
def test_suggested_folds(labels: str, folds: int) -> None:
    assert suggested_folds(labelled(labels)) == folds


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
    "single cases": ({"train": HEADER + "1:1:a\n2:2:b\n"}, "single training case"),
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
