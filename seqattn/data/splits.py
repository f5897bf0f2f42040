"""Stratified splits of a training set into training and validation part."""

import numpy as np
from numpy.typing import NDArray

from seqattn.data.series import SeriesSet
from seqattn.errors import SeqattnError

Indices = NDArray[np.int64]
Split = tuple[Indices, Indices]


def suggested_folds(train_set: SeriesSet) -> int:
    """How many folds a TRAIN set deserves.

    1 (a single split) from 100 cases on; else as many as its smallest class has cases, at least 2 and at most 4;
    1 where no class has two cases.
    """
    counts = np.unique(train_set.labels, return_counts=True)[1]
    if train_set.cases >= 100 or counts.max() < 2:
        return 1
    return int(min(4, max(2, counts.min())))


def stratified_split(labels: NDArray[np.generic], fraction: float, seed: int) -> Split:
    """Indices (training, validation), both ascending: `fraction` of every class, by largest remainder, is held out.

    Every class keeps at least one training case, so a class's only case trains; at least one case is held out.
    labels: (cases,), any dtype. Raises SeqattnError where every class has a single case.
    """
    groups = _shuffled_classes(labels, seed)
    sizes = np.array([len(group) for group in groups])
    quotas = np.where(sizes > 1, sizes * fraction, 0.0)
    most = np.minimum(np.ceil(quotas), sizes - 1).astype(np.int64)
    held = np.minimum(np.floor(quotas), most).astype(np.int64)
    wanted = min(max(1, round(quotas.sum())), int(most.sum()))
    while held.sum() < wanted:
        held[np.argmax(np.where(held < most, quotas - held, -np.inf))] += 1
    validation = np.sort(np.concatenate([group[:count] for group, count in zip(groups, held, strict=True)]))
    if not len(validation):
        raise SeqattnError(
            "every class has a single training case, so none can be held out: use --protocol paper, which trains on all"
        )
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def stratified_fold(labels: NDArray[np.generic], folds: int, fold: int, seed: int) -> Split:
    """Indices (training, validation), both ascending, of fold `fold` of `folds`.

    The folds part the cases of all classes with at least two cases; the only case of a class always trains.
    labels: (cases,), any dtype. Raises SeqattnError where there are fewer such cases than folds.
    """
    groups = [group for group in _shuffled_classes(labels, seed) if len(group) > 1]
    order = np.concatenate([*groups, np.empty(0, np.int64)])
    if len(order) < folds:
        raise SeqattnError(f"{len(order)} training cases can be held out, too few for {folds} folds: use fewer folds")
    validation = np.sort(order[fold::folds])
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def _shuffled_classes(labels: NDArray[np.generic], seed: int) -> list[Indices]:
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
