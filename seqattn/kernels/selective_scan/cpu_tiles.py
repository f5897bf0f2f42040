"""Moving a block of LANES channels between the arrays of a scan and its tiles, in the order of the scan.

A tile is a (steps, LANES) array of one chunk; lanes beyond the block's channels are 0.
"""

from typing import Any

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, load, store


@jit
def count_blocks(channels: int, groups: int) -> int:
    """Blocks of LANES channels in one group."""
    return (channels // groups + LANES - 1) // LANES


@jit
def block_channels(block: int, channels: int, groups: int, blocks: int) -> Any:
    """Group, first channel and number of channels of one of the groups * blocks blocks."""
    group, per_group, inside = block // blocks, channels // groups, (block % blocks) * LANES
    return group, group * per_group + inside, min(LANES, per_group - inside)


@jit
def step_of(place: int, end: int, reverse: bool) -> int:
    """The step that comes at `place` in the order of the scan."""
    return end - 1 - place if reverse else place


@jit
def read_row(array: Any, flat: int, width: int, tile: Any, s: int) -> None:
    """Row s of a tile from the `width` elements of a C-contiguous array from flat position `flat` on."""
    if width == LANES:
        store(tile, s * LANES, load(array, flat))
    else:
        elements = array.reshape(-1)
        for c in range(LANES):
            tile[s, c] = elements[flat + c] if c < width else 0


@jit
def write_row(array: Any, flat: int, width: int, tile: Any, s: int) -> None:
    """The reverse of `read_row`."""
    if width == LANES:
        store(array, flat, load(tile, s * LANES))
    else:
        elements = array.reshape(-1)
        for c in range(width):
            elements[flat + c] = tile[s, c]


@jit
def read_steps(
    array: Any, row: int, first: int, width: int, start: int, steps: int, end: int, reverse: bool, tile: Any
) -> None:
    """Rows 0 … steps - 1 of a tile: places `start` on of a (batch, length, channels) array."""
    for s in range(steps):
        t = step_of(start + s, end, reverse)
        read_row(array, (row * array.shape[1] + t) * array.shape[2] + first, width, tile, s)


@jit
def write_steps(
    array: Any, row: int, first: int, width: int, start: int, steps: int, end: int, reverse: bool, tile: Any
) -> None:
    """The reverse of `read_steps`."""
    for s in range(steps):
        t = step_of(start + s, end, reverse)
        write_row(array, (row * array.shape[1] + t) * array.shape[2] + first, width, tile, s)


@jit
def read_states(array: Any, row: int, group: int, start: int, steps: int, end: int, reverse: bool, tile: Any) -> None:
    """Fill tile (state, steps) from B or C, (batch, length, groups, state)."""
    for s in range(steps):
        t = step_of(start + s, end, reverse)
        for n in range(array.shape[3]):
            tile[n, s] = array[row, t, group, n]


@jit
def clear_steps(array: Any, row: int, first: int, width: int, end: int) -> None:
    """Zeros past the end of a sequence."""
    for t in range(end, array.shape[1]):
        for c in range(width):
            array[row, t, first + c] = 0
