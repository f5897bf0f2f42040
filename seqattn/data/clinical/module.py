"""Irregular health records for training and evaluation: the Lightning data module."""

import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from seqattn.data.clinical.datasets import Batch, ClinicalDataset
from seqattn.data.clinical.grid import FILLS
from seqattn.data.clinical.notes import NoteEncoder, encode_notes, note_encoder
from seqattn.data.clinical.partition import held_fold, hold_out, random_splits
from seqattn.data.clinical.preparation import (
    apply_schema,
    check_labels,
    check_training,
    count_unseen,
    fit_schema,
    prepare,
)
from seqattn.data.clinical.records import SPLITS, Indices, Stays, check_subjects, describe
from seqattn.data.clinical.schema import Schema
from seqattn.data.clinical.sources import read_stays
from seqattn.data.samplers import EvaluationSampler, ShuffleSampler, rank_and_world
from seqattn.errors import SeqattnError

__all__ = ["ClinicalDataModule", "ClinicalDataset", "prediction_dataset"]


class ClinicalDataModule(LightningDataModule):
    """Stays of one source, split by subject, scaled with the training split's statistics.

    Args:
        dataset: "physionet2012", "physionet2019", "mimic3-ihm", "mimic3-pheno", "synthetic", a folder of long tables or
            of MEDS, or `Stays` in memory (`from_samples`, `from_pypots`), which then are no hyperparameter.
        data_dir: where a named data set is looked for, default $SEQATTN_DATA.
        options: of the source's reader, such as {"split": "random"} or {"clock": "official"}.
        steps: of the regular grid, default one an hour of the window.
        static: give the model the static values, as variables observed at hour 0.
        fill: of the regular series, "forward" or "published" (`regular_series`).
        max_rows, max_notes: the latest times and notes of a stay that are kept.
        notes: what encodes the notes: "tfidf", a .npy or .parquet file of vectors, a model of Hugging Face or of
            sentence-transformers by folder or name; None leaves the notes out, but for vectors that given stays hold.
        note_dim: width of the vectors of "tfidf".
        batch_size, eval_batch_size: stays per training batch, and per validation or test batch; per process.
        validation_fraction: of the training subjects, held out where the source has no validation split.
        folds, fold: with folds > 1, fold `fold` of the subjects of training and validation is held out instead.
        seed: draws splits and the training order.
        num_workers: processes per loader.

    A source without splits is split 80/10/10 by subject. After `setup`: stays (normalised), schema, train_indices,
    val_indices, test_indices, note_encoder (None where there is none), and the properties below; `summary` lists what
    was left out, cut or clipped, and is printed to stderr. Batches are ClinicalDataset's.
    The samplers split the stays over processes themselves: build the Trainer with use_distributed_sampler=False.

    Raises SeqattnError for an option out of range and, in `setup`, for data that cannot be used, subjects in two splits
    and labels that are missing.
    """

    stays: Stays
    schema: Schema
    train_indices: Indices
    val_indices: Indices
    test_indices: Indices
    note_encoder: NoteEncoder | None

    def __init__(
        self,
        dataset: str | Stays,
        data_dir: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        steps: int | None = None,
        static: bool = True,
        fill: Literal["forward", "published"] = "forward",
        max_rows: int = 1000,
        max_notes: int = 5,
        notes: str | None = None,
        note_dim: int = 64,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        validation_fraction: float = 0.1,
        folds: int = 1,
        fold: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        self.save_hyperparameters(logger=False, ignore=["dataset"] if isinstance(dataset, Stays) else [])
        self.dataset, self.data_dir, self.options, self.seed = dataset, data_dir, options, seed
        self.steps, self.static, self.fill, self.max_rows, self.max_notes = steps, static, fill, max_rows, max_notes
        self.notes, self.note_dim, self.num_workers = notes, note_dim, num_workers
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.validation_fraction, self.folds, self.fold = validation_fraction, folds, fold
        self._check_options()

    def _check_options(self) -> None:
        for name in ("batch_size", "eval_batch_size", "folds", "max_rows", "max_notes", "note_dim"):
            if getattr(self, name) < 1:
                raise SeqattnError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise SeqattnError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.steps is not None and self.steps < 2:
            raise SeqattnError(f"steps is {self.steps}; it must be at least 2")
        if self.fill not in FILLS:
            raise SeqattnError(f"fill is {self.fill!r}; it must be 'forward' or 'published'")
        if not 0 < self.validation_fraction < 1:
            raise SeqattnError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")
        if not 0 <= self.fold < self.folds:
            raise SeqattnError(f"fold is {self.fold}; it must lie between 0 and {self.folds - 1}")

    def setup(self, stage: str | None = None) -> None:
        """Read, split, scale and encode, once; only the first call does anything."""
        if hasattr(self, "stays"):
            return
        read = read_stays(self.dataset, self.data_dir, self.options, self.notes)
        stays = prepare(read, static=self.static, max_rows=self.max_rows, max_notes=self.max_notes)
        parts = self._split(stays)
        left = len(stays) - sum(len(indices) for indices in parts.values())
        stays = stays.counted("stays of no split left out", left)
        check_subjects(stays, parts)
        for part, indices in parts.items():
            check_labels(stays, indices, part)
        train = parts["train"]
        check_training(stays, train)
        self.schema = fit_schema(stays, train, self.steps or max(2, round(stays.window)))
        stays = apply_schema(count_unseen(stays, train), self.schema)
        self.note_encoder = None
        if stays.notes is not None and stays.notes.vectors is None:
            texts = stays.subset(train).notes
            self.note_encoder = note_encoder(str(self.notes), texts.texts if texts else (), self.note_dim, self.seed)
            stays = encode_notes(stays, self.note_encoder)
        self.train_indices, self.val_indices, self.test_indices = (parts[name] for name in SPLITS)
        self.stays = stays
        if rank_and_world()[0] == 0:
            print("\n".join(self.summary), file=sys.stderr, flush=True)

    def _split(self, stays: Stays) -> dict[str, Indices]:
        splits = stays.splits
        if not (splits != "").any():
            splits = random_splits(stays, self.seed)
        parts = {name: np.flatnonzero(splits == name) for name in SPLITS}
        if self.folds > 1:
            known = np.sort(np.concatenate([parts["train"], parts["valid"]]))
            parts["train"], parts["valid"] = held_fold(stays, known, self.folds, self.fold, self.seed)
        elif not len(parts["valid"]):
            parts["train"], parts["valid"] = hold_out(stays, parts["train"], self.validation_fraction, self.seed)
        for name, indices in parts.items():
            if not len(indices):
                source = self.dataset if isinstance(self.dataset, str) else "the data"
                raise SeqattnError(f"{source} has no stays to {name} on; name some in the column 'split'")
        return parts

    @property
    def summary(self) -> list[str]:
        """One line per split, and one for everything that was left out, cut or clipped."""
        parts = zip(SPLITS, (self.train_indices, self.val_indices, self.test_indices), strict=True)
        rates = [(name, len(chosen), 100 * float(self.stays.labels[chosen].mean())) for name, chosen in parts]
        lines = [f"{name}: {count:,} stays, {rate:.1f} % positive" for name, count, rate in rates]
        return lines + describe(self.stays.counts)

    @property
    def num_channels(self) -> int:
        return len(self.schema.variables)

    @property
    def num_steps(self) -> int:
        return self.schema.steps

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.stays.label_names

    @property
    def num_labels(self) -> int:
        """Logits of a model: 2 (softmax) for one label, else one for each label (sigmoid)."""
        return max(2, len(self.label_names))

    @property
    def note_width(self) -> int | None:
        """Width of the note vectors, None without notes."""
        notes = self.stays.notes
        return None if notes is None or notes.vectors is None else int(notes.vectors.shape[1])

    @property
    def positive_rates(self) -> list[float]:
        """The part of the training stays that is positive, for each label."""
        return [float(rate) for rate in self.stays.labels[self.train_indices].mean(axis=0)]

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = rank_and_world()
        sampler = ShuffleSampler(len(self.train_indices), self.seed, rank=rank, world=world)
        if self.trainer is not None:  # worker processes read the order of a resumed epoch before Lightning sets it
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self._loader(self.train_indices, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader(self.val_indices)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader(self.test_indices)

    def _evaluation_loader(self, indices: Indices) -> DataLoader[Batch]:
        rank, world = rank_and_world()
        if len(indices) < world:
            raise SeqattnError(f"{len(indices)} stays cannot be evaluated by {world} processes: use fewer devices")
        sampler = EvaluationSampler(len(indices), rank=rank, world=world)
        return self._loader(indices, sampler, self.eval_batch_size)

    def _loader(self, indices: Indices, sampler: Sampler[int], batch_size: int) -> DataLoader[Batch]:
        return DataLoader(
            ClinicalDataset(self.stays, steps=self.num_steps, indices=indices, fill=self.fill),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_as_fetched,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from the global generator
        )


def prediction_dataset(
    dataset: str | Stays,
    schema: Schema,
    data_dir: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    static: bool = True,
    fill: Literal["forward", "published"] = "forward",
    max_rows: int = 1000,
    max_notes: int = 5,
    notes: str | None = None,
    encoder: NoteEncoder | None = None,
    unknown: Literal["error", "ignore"] = "error",
) -> ClinicalDataset:
    """All stays of a source, or those given, as a trained model takes them; a source's labels are not read.

    schema: of the run; the other arguments as the run's ClinicalDataModule had them. encoder: the run's note_encoder.
    The reader's window is the schema's.
    unknown: a variable that the schema lacks is an error, or its events are ignored and counted.
    What was left out is in `stays.counts` of the result.
    """
    stays = read_stays(dataset, data_dir, options or {}, notes, labelled=False, window=schema.window)
    prepared = prepare(stays, static=static, max_rows=max_rows, max_notes=max_notes)
    applied = apply_schema(prepared, schema, unknown)
    if applied.notes is not None and applied.notes.vectors is None:
        applied = encode_notes(applied, encoder or note_encoder(str(notes), (), 0, 0))
    return ClinicalDataset(applied, steps=schema.steps, fill=fill)


def _as_fetched(batch: Any) -> Any:
    return batch
