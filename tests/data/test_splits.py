"""Splits and folds keep every class, and part the cases."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data.series import SeriesSet
from seqattn.data.splits import stratified_fold, stratified_split, suggested_folds
from seqattn.errors import SeqattnError


def labelled(labels: str) -> SeriesSet:
    cases = len(labels)
    return SeriesSet(
        np.zeros((cases, 2, 1), np.float32), np.full(cases, 2), np.array(list(labels)), tuple(sorted(set(labels)))
    )


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
