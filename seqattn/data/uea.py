"""UEA/UCR time-series classification: data set, batches and Lightning data module."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from seqattn.data.archive import bundled_datasets, find_split, local_datasets
from seqattn.data.cache import load_series
from seqattn.data.samplers import EvaluationSampler, ShuffleSampler, rank_and_world
from seqattn.data.series import SeriesSet
from seqattn.data.splits import Indices, stratified_fold, stratified_split, suggested_folds
from seqattn.errors import SeqattnError, nearest

__all__ = [
    "SeriesDataset",
    "UEADataModule",
    "bundled_datasets",
    "check_channels",
    "check_compatible",
    "find_split",
    "local_datasets",
    "suggested_folds",
]

Batch = dict[str, Tensor]


class SeriesDataset(Dataset[Batch]):
    """Cases of a SeriesSet as tensors, fetched a whole batch at a time.

    A batch is a dict: x (batch, seq_len, channels) float32 as read, NaN where missing, 0 past the end; lengths,
    label (the position in `classes`, -1 without a label) and index (the case's row in `series`), each (batch,) int64.

    indices: the cases to offer, default all. seq_len: steps of x, default the longest series.
    """

    def __init__(
        self, series: SeriesSet, classes: Sequence[str], *, indices: Indices | None = None, seq_len: int | None = None
    ) -> None:
        numbers = {"": -1} | {name: number for number, name in enumerate(classes)}
        extra = max(0, (seq_len or 0) - series.max_length)
        self.x = torch.from_numpy(np.pad(series.values, ((0, 0), (0, extra), (0, 0))) if extra else series.values)
        self.lengths = torch.from_numpy(series.lengths)
        self.label = torch.tensor([numbers[label] for label in series.labels.tolist()])
        self.index = torch.from_numpy(np.arange(series.cases) if indices is None else indices)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([position]).items()}

    def __getitems__(self, positions: list[int]) -> Batch:
        index = self.index[positions]
        return {"x": self.x[index], "lengths": self.lengths[index], "label": self.label[index], "index": index}


class UEADataModule(LightningDataModule):
    """TRAIN and TEST of one data set of the UEA/UCR archive, or of files in its format.

    Args:
        dataset: the archive's name; `find_split` says where its files are looked for.
        data_dir: a folder searched first.
        batch_size, eval_batch_size: cases per training batch, and per validation or test batch; per process.
        protocol: "holdout" validates on a stratified part of TRAIN; "paper" trains on all of TRAIN and validates on
            TEST, as many publications do.
        validation_fraction: the held-out part of TRAIN, when folds is 1.
        folds, fold: with folds > 1, fold `fold` of a stratified k-fold is held out; fold=None trains on all of TRAIN
            and has no validation.
        seed: draws the split and the training order.
        num_workers: processes per loader.

    After `setup`: train_set and test_set (SeriesSet), train_indices and val_indices into TRAIN (val_indices is empty
    under "paper" and for fold=None), and the properties below. Batches are SeriesDataset's, all of seq_len steps.
    The samplers split the cases over processes themselves: build the Trainer with use_distributed_sampler=False.

    Raises SeqattnError for an option out of range and, in `setup`, for data that cannot be trained on.
    """

    train_set: SeriesSet
    test_set: SeriesSet
    train_indices: Indices
    val_indices: Indices

    def __init__(
        self,
        dataset: str,
        data_dir: str | None = None,
        *,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        protocol: Literal["holdout", "paper"] = "holdout",
        validation_fraction: float = 0.2,
        folds: int = 1,
        fold: int | None = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.dataset, self.data_dir, self.protocol, self.seed = dataset, data_dir, protocol, seed
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.validation_fraction, self.folds, self.fold = validation_fraction, folds, fold
        self._check_options()

    def _check_options(self) -> None:
        for name in ("batch_size", "eval_batch_size", "folds"):
            if getattr(self, name) < 1:
                raise SeqattnError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise SeqattnError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.protocol not in ("holdout", "paper"):
            raise SeqattnError(f"protocol is {self.protocol!r}; it must be 'holdout' or 'paper'")
        if not 0 < self.validation_fraction < 1:
            raise SeqattnError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise SeqattnError(f"fold is {self.fold}; it must lie between 0 and {self.folds - 1}, or be None")

    def prepare_data(self) -> None:
        """Download the files where they are missing; Lightning calls it in one process."""
        find_split(self.dataset, "TRAIN", self.data_dir)

    def setup(self, stage: str | None = None) -> None:
        """Read both splits and choose the training cases; only the first call does anything."""
        if hasattr(self, "train_set"):
            return
        train_file = find_split(self.dataset, "TRAIN", self.data_dir)
        test_file = find_split(self.dataset, "TEST", self.data_dir)
        train, test = load_series(train_file), load_series(test_file)
        _check_training_set(train, str(train_file))
        _check_test_set(test, train, str(test_file))
        self.train_indices, self.val_indices = self._choose(train)
        check_channels(train.subset(self.train_indices), str(train_file), "training case")
        check_channels(test, str(test_file))
        self.train_set, self.test_set = train, test

    def _choose(self, train: SeriesSet) -> tuple[Indices, Indices]:
        if self.protocol == "paper" or self.fold is None:
            return np.arange(train.cases), np.empty(0, np.int64)
        if self.folds > 1:
            return stratified_fold(train.labels, self.folds, self.fold, self.seed)
        return stratified_split(train.labels, self.validation_fraction, self.seed)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train_set.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return self.train_set.channels

    @property
    def seq_len(self) -> int:
        """Steps of the longest series of TRAIN and TEST."""
        return max(self.train_set.max_length, self.test_set.max_length)

    @property
    def min_length(self) -> int:
        """Steps of the shortest series of TRAIN and TEST."""
        return int(min(self.train_set.lengths.min(), self.test_set.lengths.min()))

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over the observed values of the training cases.

        Padding and missing values do not count; the deviation divides by the count, and is 1 for a constant channel.
        """
        part = self.train_set.subset(self.train_indices)
        means, deviations = [], []
        for channel in range(part.channels):
            observed = part.observed(channel).astype(np.float64)
            means.append(float(observed.mean()))
            deviations.append(float(observed.std()) if observed.min() < observed.max() else 1.0)
        return means, deviations

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = rank_and_world()
        sampler = ShuffleSampler(len(self.train_indices), self.seed, rank=rank, world=world)
        if self.trainer is not None:  # worker processes read the order of a resumed epoch before Lightning sets it
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self._loader(self.train_set, self.train_indices, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """The held-out cases; TEST under protocol "paper"; [] for fold=None."""
        if self.protocol == "paper":
            return self.test_dataloader()
        return self._evaluation_loader(self.train_set, self.val_indices) if len(self.val_indices) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader(self.test_set, np.arange(self.test_set.cases))

    def _evaluation_loader(self, series: SeriesSet, indices: Indices) -> DataLoader[Batch]:
        rank, world = rank_and_world()
        if len(indices) < world:
            raise SeqattnError(f"{len(indices)} cases cannot be evaluated by {world} processes: use fewer devices")
        sampler = EvaluationSampler(len(indices), rank=rank, world=world)
        return self._loader(series, indices, sampler, self.eval_batch_size)

    def _loader(self, series: SeriesSet, indices: Indices, sampler: Sampler[int], batch_size: int) -> DataLoader[Batch]:
        return DataLoader(
            SeriesDataset(series, self.classes, indices=indices, seq_len=self.seq_len),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_as_fetched,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from the global generator
        )


def check_compatible(series: SeriesSet, *, in_channels: int, classes: Sequence[str], source: str) -> None:
    """Raise SeqattnError unless a model of `in_channels` and `classes` can take `series`.

    Cases without a label are welcome. source: what the series came from, for the message.
    """
    if series.channels != in_channels:
        problem = f"{source} has {series.channels} channels, the training data {in_channels}"
        raise SeqattnError(f"{problem}: give a file with the channels of the training data")
    strange = np.flatnonzero(~np.isin(series.labels, ["", *classes]))
    if len(strange):
        label, known = str(series.labels[strange[0]]), ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        problem = f"{source}, case {strange[0] + 1}: label {label!r} is not in the training data ({known})"
        raise SeqattnError(problem + (nearest(label, classes) or "; mend or remove the label"))


def check_channels(series: SeriesSet, source: str, unit: str = "case") -> None:
    """Raise SeqattnError where a channel has no value in any case, which the message calls `unit`."""
    for channel in range(series.channels):
        if not len(series.observed(channel)):
            raise SeqattnError(
                f"{source}: channel {channel + 1} has no value in any {unit}; remove the channel or fill it"
            )


def _as_fetched(batch: Any) -> Any:
    return batch


def _check_training_set(train: SeriesSet, source: str) -> None:
    if (train.labels == "").any():
        raise SeqattnError(f"{source} has no class labels; classification needs a label at the end of each case")
    found = np.unique(train.labels)
    if len(found) < 2:
        raise SeqattnError(f"{source} has one class only ({found[0]}); classification needs cases of at least two")


def _check_test_set(test: SeriesSet, train: SeriesSet, source: str) -> None:
    if (test.labels == "").any():
        raise SeqattnError(f"{source} has no class labels; give predict, not training, a file without labels")
    trained = [name for name in train.classes if (train.labels == name).any()]
    check_compatible(test, in_channels=train.channels, classes=trained, source=source)
