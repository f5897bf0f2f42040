"""The long series of the benchmark are what its page says."""

from pathlib import Path

import torch
from loading import load

tasks = load(Path(__file__).parents[1] / "benchmarks" / "long_tasks.py")
LENGTH = 4096


def occurrences(x):
    """Which pattern every place of PATTERN steps correlates with most, -1 where it is noise."""
    places = x.unflatten(0, (-1, tasks.PATTERN))  # (places, PATTERN, CHANNELS)
    scores = torch.einsum("npc,kpc->nk", places, tasks.patterns())
    best = scores.max(1)
    return torch.where(best.values > 0.6 * tasks.patterns()[0].square().sum(), best.indices, -1)


def test_a_case_does_not_depend_on_its_batch():
    x, label = tasks.order_task([5, 2, 9], LENGTH, seed=1)
    alone, its_label = tasks.order_task([2], LENGTH, seed=1)
    assert torch.equal(x[1], alone[0])
    assert label[1] == its_label[0]
    assert not torch.equal(tasks.order_task([2], LENGTH, seed=2)[0], alone)


def test_only_the_order_of_the_patterns_tells_the_class(monkeypatch):
    monkeypatch.setattr(tasks, "NOISE", 0.1)
    x, label = tasks.order_task(list(range(40)), LENGTH, seed=0)
    assert x.shape == (40, LENGTH, tasks.CHANNELS)
    assert 10 <= label.sum() <= 30
    for series, first in zip(x, label.tolist(), strict=True):
        found = occurrences(series)
        found = found[found >= 0]
        half = LENGTH // tasks.SPACING // 2
        assert len(found) == 2 * half
        assert (found[:half] == first).all()
        assert (found[half:] == 1 - first).all()


def test_the_patterns_are_alike_but_for_their_order():
    one, other = tasks.patterns()
    assert torch.allclose(one.square().sum(), other.square().sum())
    assert (one * other).sum().abs() < 0.2 * one.square().sum()
