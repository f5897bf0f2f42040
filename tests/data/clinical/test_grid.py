import numpy as np
import pytest
import torch

from seqattn.data.clinical.grid import regular_series
from seqattn.errors import SeqattnError
from seqattn.layers.imputation import regular_grid


def series(rows: list[tuple[float, dict[int, float]]], steps: int, channels: int, fill: str) -> np.ndarray:
    """The grid of one stay of rows (hour, channel -> value) in a window of `steps` hours: (steps, 2 * channels)."""
    events = [(row, hour, channel, value) for row, (hour, seen) in enumerate(rows) for channel, value in seen.items()]
    row, hour, channel, value = (np.array(column) for column in zip(*events, strict=True))
    parts = hour.astype(np.float32) / np.float32(steps)
    shape = (1, steps, channels)
    return regular_series(np.zeros(len(row), int), row, parts, channel, value, shape=shape, fill=fill)[0]


def test_forward_fill_carries_the_last_value_of_a_step_on() -> None:
    grid = series([(0.5, {0: 2.0}), (1.2, {0: 5.0}), (1.8, {1: 9.0}), (3.2, {1: 7.0})], 5, 2, "forward")
    assert grid[:, 0].tolist() == [2, 5, 5, 5, 5]
    assert grid[:, 1].tolist() == [0, 9, 9, 7, 7]
    assert grid[:, 2].tolist() == [1, 1, 0, 0, 0]
    assert grid[:, 3].tolist() == [0, 1, 0, 1, 0]


def test_published_fill_has_the_published_faults() -> None:
    """An hour without rows ends the carrying; a later row of the hour that lacks the channel overwrites its value."""
    grid = series([(0.5, {0: 2.0}), (3.2, {1: 1.0})], 6, 2, "published")
    assert grid[:, 0].tolist() == [2, 0, 0, 0, 0, 0]
    grid = series([(0.5, {0: 2.0}), (1.2, {0: 5.0}), (1.8, {1: 9.0})], 3, 2, "published")
    assert (grid[1, 0], grid[1, 2]) == (2, 1)


@pytest.mark.parametrize("hour", range(48))
def test_a_whole_hour_begins_its_step(hour: int) -> None:
    grid = series([(hour, {0: 1.0})], 48, 1, "forward")
    assert np.flatnonzero(grid[:, 1]).tolist() == [hour]


def test_the_windows_very_end_belongs_to_no_step() -> None:
    assert not series([(48.0, {0: 1.0})], 48, 1, "forward").any()


@pytest.mark.parametrize("fill", ["forward", "published"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_layers_grid(fill: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 400, (3, 40)) / 400, axis=1).astype(np.float32)
    mask = random.random((3, 40, 4)) < 0.2
    mask[:, :, 3] = False
    values = random.standard_normal((3, 40, 4)).astype(np.float32)
    stay, row, channel = np.nonzero(mask)
    ours = regular_series(stay, row, times[stay, row], channel, values[stay, row, channel], shape=(3, 12, 4), fill=fill)
    seen = [np.unique(row[stay == number], return_inverse=True) for number in range(3)]  # rows with an observation only
    theirs = np.zeros_like(ours)
    for number, (rows, _) in enumerate(seen):
        chosen = (torch.from_numpy(array[number, rows][None]) for array in (values, mask, times))
        theirs[number] = regular_grid(*chosen, 12, fill=fill)[0].numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_unknown_fill() -> None:
    with pytest.raises(SeqattnError, match="fill is 'clean'"):
        series([(1.0, {0: 1.0})], 2, 1, "clean")
