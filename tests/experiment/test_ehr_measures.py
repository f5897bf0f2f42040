"""Measures of several labels: their means have intervals too."""

import numpy as np
import pytest
import torch

from seqattn.experiment.ehr_measures import measures_of


def stays(labels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    label = (random.random((80, labels)) < 0.4).astype(np.float32)
    return torch.from_numpy((0.3 * label + 0.7 * random.random((80, labels))).astype(np.float32)), torch.tensor(label)


def test_the_mean_of_equal_labels_has_their_interval() -> None:
    risk, label = stays(1)
    one = measures_of(["a"], risk, label, *stays(1, seed=1), draws=30)
    both = (tensor.expand(-1, 2) for tensor in (risk, label, *stays(1, seed=1)))
    two = measures_of(["a", "b"], *both, draws=30)
    assert two["per_label"] == {"a": one, "b": one}
    assert set(two["interval"]) == set(one["interval"])
    for name, bounds in two["interval"].items():
        assert bounds == pytest.approx(one["interval"][name], rel=1e-12), name


def test_the_mean_of_many_labels_is_surer_than_one() -> None:
    found = measures_of([f"l{number}" for number in range(8)], *stays(8), *stays(8, seed=1), draws=60)
    for name in ("auroc", "brier", "f1_at_threshold"):
        low, high = found["interval"][name]
        widths = [entry["interval"][name][1] - entry["interval"][name][0] for entry in found["per_label"].values()]
        assert low < found[name] < high
        assert high - low < min(widths)


def test_what_no_label_defines_has_no_interval() -> None:
    risk, label = stays(2)
    found = measures_of(["a", "b"], risk, torch.zeros_like(label), *stays(2, seed=1), draws=5)
    assert (found["auroc"], found["interval"]["auroc"]) == (None, [None, None])
    assert found["interval"]["brier"][0] > 0
