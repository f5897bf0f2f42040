"""Periods of known series, golden ones, and the rules of both methods."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from seqattn.models.mptsnet import find_periods

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mptsnet.npz")


@pytest.mark.parametrize("case", json.loads(str(GOLDEN["periods/cases"])))
def test_official_periods_with_integer_bins(case):
    series = torch.from_numpy(GOLDEN[f"periods/{case}/series"])
    periods, bins = find_periods(series[None, :, None], method="official")
    assert periods == GOLDEN[f"periods/{case}/integer_bins"].tolist()
    assert periods == [round(len(series) / index) for index in bins]


def test_float_trap_does_not_admit_the_whole_length():
    series = torch.from_numpy(GOLDEN["periods/float_trap_T98/series"])
    assert 98 in GOLDEN["periods/float_trap_T98/official"]
    assert 98 not in find_periods(series[None, :, None])[0]


def test_opposite_phases_cancel_only_in_the_mean_series():
    wave = torch.sin(2 * torch.pi * torch.arange(120) / 12)
    x = torch.stack([wave, -wave])[:, :, None] + 0.01 * torch.sin(2 * torch.pi * torch.arange(120) / 30)[:, None]
    assert find_periods(x, k=1, method="mean_power") == ([12], [10])
    assert find_periods(x, k=1, method="official") == ([30], [4])


def test_mean_power_weighs_channels_equally_and_merges_neighbours():
    steps = torch.arange(100)
    x = torch.stack([1e4 * torch.sin(2 * torch.pi * steps / 10), torch.sin(2 * torch.pi * steps / 25)], dim=-1)[None]
    assert set(find_periods(x, k=2, method="mean_power")[0]) == {10, 25}
    near = torch.sin(2 * torch.pi * steps / 10) + 0.9 * torch.sin(2 * torch.pi * 11 * steps / 100)
    merged, _ = find_periods(near[None, :, None], k=2, method="mean_power")
    kept, _ = find_periods(near[None, :, None], k=2, method="mean_power", merge_tolerance=0.0)
    assert 9 not in merged
    assert kept == [10, 9]


@pytest.mark.parametrize("method", ["official", "mean_power"])
def test_padding_content_changes_nothing(method):
    torch.manual_seed(0)
    x, lengths = torch.randn(6, 40, 3), torch.tensor([40, 31, 25, 40, 12, 3])
    blank = x.clone()
    for row, length in enumerate(lengths):
        x[row, length:] = 1e6 * torch.randn(40 - length, 3)
        blank[row, length:] = 0
    assert find_periods(x, method=method, lengths=lengths) == find_periods(blank, method=method, lengths=lengths)


def test_short_series_have_few_periods():
    assert find_periods(torch.randn(3, 8, 2), method="official")[0] in ([4, 3], [3, 4])
    assert find_periods(torch.randn(3, 3, 2), method="mean_power") == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(5, 3)}, "must be"),
        ({"x": torch.zeros(5, 9, 1), "k": 0}, "at least 1"),
        ({"x": torch.zeros(5, 9, 1), "method": "fourier"}, "unknown method"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_periods(**arguments)
