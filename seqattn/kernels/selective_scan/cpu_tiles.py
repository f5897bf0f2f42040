"""What the CPU kernels of the scan share: their arguments, and how blocks of channels move between arrays and tiles.

A tile holds LANES channels for each step of one chunk, in the order of the scan; lanes beyond the block's channels
are 0. Inside the kernels arrays and tiles are given by the address of their first element.
"""

from typing import Any, NamedTuple

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, load, pointer, store


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


class Scan(NamedTuple):
    """A problem inside the kernels: arrays by their addresses, whose references no call has to count."""

    u: Any
    delta: Any
    A: Any
    B: Any
    C: Any
    D: Any
    z: Any
    bias: Any
    initial: Any
    others: Any  # (batch, length, channels): what the local pass adds to out
    ends: Any
    length: int
    channels: int
    groups: int
    states: int
    zero: Any  # numbers of the arrays' type
    ln2: Any
    gated: bool
    joined: bool  # whether there are others
    softplus: bool
    window: int
    reverse: bool
    local: bool
    run: int
    chunk: int


@jit
def scan_of(p: Any, others: Any) -> Any:
    """The problem p as a `Scan`; others may be empty."""
    (_, length, channels), (groups, states), number = p.u.shape, p.B.shape[2:], p.u.dtype.type
    return Scan(
        pointer(p.u, 0), pointer(p.delta, 0), pointer(p.A, 0), pointer(p.B, 0), pointer(p.C, 0), pointer(p.D, 0),
        pointer(p.z, 0), pointer(p.bias, 0), pointer(p.initial, 0), pointer(others, 0), pointer(p.ends, 0), length,
        channels, groups, states, number(0), number(np.log(2.0)), p.z.size > 0, others.size > 0, p.softplus, p.window,
        p.reverse, p.local, p.run, p.chunk,
    )  # fmt: skip


class Block(NamedTuple):
    """LANES channels of one sequence, fewer at the end of a group."""

    row: int
    end: int
    group: int
    first: int
    width: int


class Chunk(NamedTuple):
    """Where a chunk of a block lies: its steps, and their rows in arrays like u and like B."""

    steps: int
    at: int
    stride: int
    at_B: int
    stride_B: int


@jit
def blocks_of(p: Any) -> int:
    """Blocks of one group."""
    return (p.channels // p.groups + LANES - 1) // LANES


@jit
def block_of(p: Any, row: int, group: int, block: int) -> Any:
    """Block `block` of a group of a sequence."""
    per_group = p.channels // p.groups
    first = group * per_group + block * LANES
    return Block(row, p.ends[row], group, first, min(LANES, (group + 1) * per_group - first))


@jit
def chunk_of(p: Any, b: Any, run: int, start: int) -> Any:
    """The chunk that begins `start` steps into a run."""
    sign = -1 if p.reverse != p.local else 1
    size = run_size(p, b.end, run)
    place = run * p.run + (size - 1 - start if p.local else start)
    step = b.row * p.length + (b.end - 1 - place if p.reverse else place)
    return Chunk(
        min(p.chunk, size - start), step * p.channels + b.first, sign * p.channels,
        (step * p.groups + b.group) * p.states, sign * p.groups * p.states,
    )  # fmt: skip


@jit
def run_size(p: Any, end: int, run: int) -> int:
    """Steps of run `run` of a sequence."""
    return max(0, min(p.run, end - run * p.run))


@jit
def runs_of(p: Any) -> int:
    """Runs of the longest sequence."""
    return (p.length + p.run - 1) // p.run


@jit
def saved_before(p: Any, row: int, kept: int, run: int) -> int:
    """Chunk states saved before those of run `run` of a sequence, where every sequence has `kept`."""
    return row * kept + run * ((p.run + p.chunk - 1) // p.chunk)


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
def read_steps(array: Any, c: Any, width: int, tile: Any) -> None:
    """A chunk of an array like u."""
    for s in range(c.steps):
        read_row(array, c.at + s * c.stride, width, tile, s)


@jit
def write_steps(array: Any, c: Any, width: int, tile: Any) -> None:
    """The reverse of `read_steps`."""
    for s in range(c.steps):
        write_row(array, c.at + s * c.stride, width, tile, s)


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
