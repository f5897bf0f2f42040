"""What the CPU kernels of the scan share: their arguments, and how blocks of channels move between arrays and tiles.

A tile holds LANES channels for each step of one chunk, in the order of the scan; lanes beyond the block's channels
are 0. Inside the kernels arrays and tiles are given by the address of their first element.
"""

from typing import Any, NamedTuple

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, load, prefetch, store


class Problem(NamedTuple):
    """The arguments of a scan as the kernels take them: contiguous arrays of one floating type, and options.

    A sequence is scanned in runs of `run` steps, each in chunks of `chunk` steps. The main pass has one run, the whole
    sequence. The local pass has a run for each window, goes against the order of the scan, and reads from the state
    what came before a step, without the step's own input.
    """

    u: np.ndarray  # (batch, length, channels)
    delta: np.ndarray  # (batch, length, channels)
    A: np.ndarray  # (state, channels), times log2(e)
    B: np.ndarray  # (batch, length, groups, state)
    C: np.ndarray  # (batch, length, groups, state)
    D: np.ndarray  # (channels,)
    z: np.ndarray  # (batch, length, channels), or empty
    bias: np.ndarray  # (channels,)
    initial: np.ndarray  # (batch, channels, state)
    ends: np.ndarray  # (batch,)
    softplus: bool
    window: int  # of the windows scanned inside a chunk; 1 for none
    reverse: bool
    local: bool
    run: int
    chunk: int


class Block(NamedTuple):
    """LANES channels of one sequence, fewer at the end of a group."""

    row: int
    end: int
    group: int
    first: int
    width: int


@jit
def blocks_of(p: Any) -> int:
    """Blocks of one group."""
    return (p.u.shape[2] // p.B.shape[2] + LANES - 1) // LANES


@jit
def block_of(p: Any, row: int, group: int, block: int) -> Any:
    """Block `block` of a group of a sequence."""
    per_group = p.u.shape[2] // p.B.shape[2]
    first = group * per_group + block * LANES
    return Block(row, p.ends[row], group, first, min(LANES, (group + 1) * per_group - first))


@jit
def run_size(p: Any, end: int, run: int) -> int:
    """Steps of run `run` of a sequence."""
    return max(0, min(p.run, end - run * p.run))


@jit
def step_of(p: Any, end: int, run: int, place: int) -> int:
    """The step of a sequence at `place` of a run."""
    if p.local:
        place = run_size(p, end, run) - 1 - place
    place += run * p.run
    return end - 1 - place if p.reverse else place


@jit
def runs_of(p: Any) -> int:
    """Runs of the longest sequence."""
    return (p.u.shape[1] + p.run - 1) // p.run


@jit
def read_row(array: Any, at: int, width: int, tile: Any, s: int) -> None:
    """Row s of a tile from the `width` elements from `at` on."""
    if width == LANES:
        store(tile, s * LANES, load(array, at))
    else:
        for c in range(LANES):
            tile[s * LANES + c] = array[at + c] if c < width else 0


@jit
def write_row(array: Any, at: int, width: int, tile: Any, s: int) -> None:
    """The reverse of `read_row`."""
    if width == LANES:
        store(array, at, load(tile, s * LANES))
    else:
        for c in range(width):
            array[at + c] = tile[s * LANES + c]


@jit
def read_steps(array: Any, at: int, stride: int, width: int, steps: int, tile: Any) -> None:
    """Rows 0 … steps - 1 of a tile from those at, at + stride, … of an array."""
    for s in range(steps):
        read_row(array, at + s * stride, width, tile, s)


@jit
def prefetch_steps(array: Any, at: int, stride: int, steps: int) -> None:
    """Ask for what `read_steps` will read: rows a page apart are not foreseen by the processor."""
    for s in range(steps):
        prefetch(array, at + s * stride)


@jit
def write_steps(array: Any, at: int, stride: int, width: int, steps: int, tile: Any) -> None:
    """The reverse of `read_steps`."""
    for s in range(steps):
        write_row(array, at + s * stride, width, tile, s)


@jit
def read_column(array: Any, at: int, stride: int, width: int, tile: Any, s: int) -> None:
    """Row s of a tile from elements that lie `stride` apart."""
    for c in range(LANES):
        tile[s * LANES + c] = array[at + c * stride] if c < width else 0


@jit
def write_column(array: Any, at: int, stride: int, width: int, tile: Any, s: int) -> None:
    """The reverse of `read_column`."""
    for c in range(width):
        array[at + c * stride] = tile[s * LANES + c]


@jit
def clear(array: Any, at: int, stride: int, width: int, count: int) -> None:
    """Zeros in `count` rows of `width` elements."""
    for row in range(count):
        for c in range(width):
            array[at + row * stride + c] = 0


@jit
def widest_lane(tile: Any, s: int) -> float:
    """The largest magnitude in row s of a tile."""
    result = abs(tile[s * LANES])
    for c in range(1, LANES):
        result = max(result, abs(tile[s * LANES + c]))
    return result
