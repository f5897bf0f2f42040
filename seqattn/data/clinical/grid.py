"""The regular series: values carried forward on an equal grid, and whether each step has an observation."""

import numpy as np
from numpy.typing import NDArray

from seqattn.errors import SeqattnError

FILLS = ("forward", "published")
ROUNDING = 1e-6  # relative: hour 7 of 48 is 7/48 in float32, and 48 times that lies below 7


def regular_series(
    stay: NDArray[np.integer],
    row: NDArray[np.integer],
    times: NDArray[np.floating],
    channel: NDArray[np.integer],
    values: NDArray[np.floating],
    *,
    shape: tuple[int, int, int],
    fill: str = "forward",
) -> NDArray[np.float32]:
    """(stays, steps, 2 * channels) [values | flags] of normalised events, sorted by stay and time.

    stay, row, times, channel, values: (events,); times are parts of the window, and step i takes those from
    i / steps to before (i + 1) / steps: that of exactly 1 belongs to no step. shape: (stays, steps, channels).
    fill: "forward" carries the last observation on to the next, with 0 before the first. "published" repeats what the
        code of arXiv 2210.12156 does: a step without any row gets 0 and ends what was carried, and a step whose last
        row lacks the channel has the step before's value, unless that is 0, instead of its own.
    It is `layers.imputation.regular_grid` for events, made once in the loader's process.
    """
    if fill not in FILLS:
        raise SeqattnError(f"fill is {fill!r}; it must be one of {', '.join(FILLS)}")
    stays, steps, channels = shape
    step = (times * np.float32(steps * (1 + ROUNDING))).astype(np.int64)
    inside = step < steps
    stay, row, step, channel = stay[inside], row[inside], step[inside], channel[inside]
    filled = np.zeros((stays, steps, 2 * channels), np.float32)
    grid, flags = filled[..., :channels], filled[..., channels:]
    grid[stay, step, channel] = values[inside]  # of several, the last stays
    flags[stay, step, channel] = 1
    if fill == "published":
        _carry_as_published(grid, stay, row, step, channel)
    else:
        last = np.maximum.accumulate(np.where(flags > 0, np.arange(steps)[:, None], 0), axis=1)
        grid[:] = np.take_along_axis(grid, last, axis=1)
    return filled


def _carry_as_published(grid: NDArray, stay: NDArray, row: NDArray, step: NDArray, channel: NDArray) -> None:
    stays, steps, _ = grid.shape
    last_row = np.full((stays, steps), -1)
    np.maximum.at(last_row, (stay, step), row)
    observed_row = np.full(grid.shape, -1)
    observed_row[stay, step, channel] = row
    lacking = (last_row >= 0)[..., None] & (observed_row < last_row[..., None])  # the step's last row has no value
    for number in range(1, steps):
        before = grid[:, number - 1]
        carried = lacking[:, number] & (before != 0)
        grid[:, number][carried] = before[carried]
