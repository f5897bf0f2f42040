"""The regular series: values carried forward on an equal grid, and whether each step has an observation."""

import numpy as np
from numpy.typing import NDArray

from seqattn.errors import SeqattnError

FILLS = ("clean", "published")


def regular_series(
    stay: NDArray[np.integer],
    row: NDArray[np.integer],
    times: NDArray[np.floating],
    channel: NDArray[np.integer],
    values: NDArray[np.floating],
    *,
    shape: tuple[int, int, int],
    fill: str = "clean",
) -> NDArray[np.float32]:
    """(stays, steps, 2 * channels) [values | flags] of normalised events, sorted by stay and time.

    stay, row, times, channel, values: (events,); times are parts of the window, 0 to 1, and step i takes those from
    i / steps to (i + 1) / steps, the last one both ends. shape: (stays, steps, channels).
    fill: "clean" carries the last observation forward to the next, with 0 before the first. "published" repeats what
        the code of arXiv 2210.12156 does: a step without any row gets nothing and ends the carrying, and a row that
        lacks a channel overwrites the step's own observation by the step before. It leaves out a time of exactly 1.
    """
    if fill not in FILLS:
        raise SeqattnError(f"fill is {fill!r}; it must be one of {', '.join(FILLS)}")
    stays, steps, channels = shape
    # a time on a step's border, stored as float32, must not fall below it
    step = np.floor(times.astype(np.float64) * steps * (1 + 1e-7)).astype(np.int64)
    if fill == "published":
        inside = step < steps
        return _published(stay[inside], row[inside], step[inside], channel[inside], values[inside], shape)
    step = np.minimum(step, steps - 1)
    filled = np.zeros((stays, steps, 2 * channels), np.float32)
    grid, flags = filled[..., :channels], filled[..., channels:]
    grid[stay, step, channel] = values  # of several, the last stays
    flags[stay, step, channel] = 1
    last = np.maximum.accumulate(np.where(flags > 0, np.arange(steps)[:, None], 0), axis=1)
    grid[:] = np.take_along_axis(grid, last, axis=1)
    return filled


def _published(
    stay: NDArray, row: NDArray, step: NDArray, channel: NDArray, values: NDArray, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    stays, steps, channels = shape
    filled = np.zeros((stays, steps, 2 * channels), np.float32)
    grid, flags = filled[..., :channels], filled[..., channels:]
    grid[stay, step, channel] = values
    flags[stay, step, channel] = 1
    last_row = np.full((stays, steps), -1)
    np.maximum.at(last_row, (stay, step), row)
    observed_row = np.full(shape, -1)
    observed_row[stay, step, channel] = row
    lacking = (last_row >= 0)[..., None] & (observed_row < last_row[..., None])  # the step's last row has no value
    for number in range(1, steps):
        before = grid[:, number - 1]
        carried = lacking[:, number] & (before != 0)
        grid[:, number][carried] = before[carried]
    return filled
