"""Splits of stays by subject, stratified by the label where there is only one."""

import numpy as np
from numpy.typing import NDArray

from seqattn.data.clinical.records import Indices, Stays
from seqattn.data.splits import stratified_fold, stratified_split
from seqattn.errors import SeqattnError


def random_splits(stays: Stays, seed: int, *, valid: float = 0.1, test: float = 0.1) -> NDArray[np.str_]:
    """(stays,) "train", "valid" or "test": the fractions are held out by subject, stratified, drawn from `seed`."""
    everything = np.arange(len(stays))
    rest, tested = hold_out(stays, everything, test, seed)
    trained, validated = hold_out(stays, rest, valid / (1 - test), seed + 1)
    splits = np.empty(len(stays), dtype="U5")
    splits[trained], splits[validated], splits[tested] = "train", "valid", "test"
    return splits


def hold_out(stays: Stays, indices: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """`indices` in two parts, both ascending: the second holds the stays of `fraction` of the subjects."""
    subject, labels = _subjects(stays, indices)
    if len(labels) < 2:
        raise SeqattnError(f"{len(labels)} subjects cannot be split in two; give the stays of more subjects")
    if len(np.unique(labels)) == len(labels):  # every label is alone: nothing to stratify by
        labels = np.zeros(len(labels))
    return _deal(indices, subject, stratified_split(labels, fraction, seed)[1])


def held_fold(stays: Stays, indices: Indices, folds: int, fold: int, seed: int) -> tuple[Indices, Indices]:
    """`indices` in two parts, both ascending: the second holds the stays of fold `fold` of `folds`, by subject."""
    subject, labels = _subjects(stays, indices)
    return _deal(indices, subject, stratified_fold(labels, folds, fold, seed)[1])


def _subjects(stays: Stays, indices: Indices) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """The subject's number of each stay, and per subject its highest label (0 where there are none or several)."""
    _, subject = np.unique(stays.subjects[indices], return_inverse=True)
    labels = np.zeros(int(subject.max()) + 1 if len(subject) else 0)
    if stays.labels.shape[1] == 1:
        np.maximum.at(labels, subject, np.nan_to_num(stays.labels[indices, 0]))
    return subject, labels


def _deal(indices: Indices, subject: NDArray[np.int64], held: Indices) -> tuple[Indices, Indices]:
    inside = np.isin(subject, held)
    return np.sort(indices[~inside]), np.sort(indices[inside])
