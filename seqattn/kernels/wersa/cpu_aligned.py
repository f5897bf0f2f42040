"""The aligned Haar filter in Numba: lifting in place.

In a tile, the row of a coefficient's first token becomes the mean over the tokens it covers, and the row half a block
further the half difference. Where token and row are multiples of 2^level, the row starts a block of that level.
"""

from typing import Any

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, advance, broadcast, load, pointer, store
from seqattn.kernels.wersa.cpu_rows import dot_rows, padded, read_rows, write_rows


def rows_of(levels: int, at_least: int) -> tuple[int, int]:
    """Tokens of a block, and rows of scratch it takes."""
    rows = -(-at_least // 2**levels) * 2**levels
    return rows, 2 * rows


@jit
def lift(tile: Any, rows: int, width: int, levels: int, half: Any) -> None:
    """Rows to means and half differences, levels from fine to coarse. half: 1/2 in the tile's type."""
    step = 1
    for _ in range(levels):
        for row in range(0, rows, 2 * step):
            for at in range(row * width, (row + 1) * width, LANES):
                first = load(tile, at)
                mean = (first + load(tile, at + step * width)) * broadcast(half)
                store(tile, at, mean)
                store(tile, at + step * width, first - mean)
        step *= 2


@jit
def unlift(tile: Any, rows: int, width: int, levels: int, gains: Any, sequence: int, start: int, end: int) -> None:
    """The inverse of `lift`, every coefficient multiplied by the gain of the first token it covers."""
    bands, step = gains.shape[2], 1 << (levels - 1)
    for row in range(0, min(rows, end - start), 2 * step):
        gain = broadcast(gains[sequence, start + row, bands - 1])
        for at in range(row * width, (row + 1) * width, LANES):
            store(tile, at, load(tile, at) * gain)
    for level in range(levels, 0, -1):
        for row in range(0, min(rows, end - start), 2 * step):
            gain = broadcast(gains[sequence, start + row, level - 1])
            for at in range(row * width, (row + 1) * width, LANES):
                mean, difference = load(tile, at), load(tile, at + step * width) * gain
                store(tile, at, mean + difference)
                store(tile, at + step * width, mean - difference)
        step //= 2


@jit
def filter_blocks(
    source: Any, target: Any, inputs: Any, gains: Any, ends: Any, received: Any, shift: int, count: int, rows: int,
    scratch: Any, first: int, stop: int,
) -> None:  # fmt: skip
    """The window `target` = the filter of `source`, whole sequences."""
    blocks, width, levels = -(-count // rows), padded(target.shape[3]), gains.shape[2] - 1
    tile, half = pointer(scratch, 0), target.dtype.type(0.5)
    for task in range(first, stop):
        sequence, start = task // blocks, shift + task % blocks * rows
        for head in range(target.shape[1]):
            read_rows(source, 0, sequence, head, start, rows, ends[sequence], scratch, 0)
            lift(tile, rows, width, levels, half)
            unlift(tile, rows, width, levels, gains, sequence, start, ends[sequence])
            write_rows(target, shift, sequence, head, start, rows, ends[sequence], scratch, 0)


@jit
def gradient_blocks(
    source: Any, target: Any, inputs: Any, gains: Any, ends: Any, received: Any, shift: int, count: int, rows: int,
    scratch: Any, first: int, stop: int,
) -> None:  # fmt: skip
    """`target`, whole sequences, = the filter, its own adjoint, of the gradients in the window `source`.

    received += what the gains of `inputs` receive.
    """
    blocks, width, levels = -(-count // rows), padded(target.shape[3]), gains.shape[2] - 1
    tile, half = pointer(scratch, 0), target.dtype.type(0.5)
    values = advance(tile, rows * width)
    for task in range(first, stop):
        sequence, start = task // blocks, shift + task % blocks * rows
        for head in range(target.shape[1]):
            read_rows(source, shift, sequence, head, start, rows, ends[sequence], scratch, 0)
            read_rows(inputs, 0, sequence, head, start, rows, ends[sequence], scratch, rows)
            lift(tile, rows, width, levels, half)
            lift(values, rows, width, levels, half)
            collect(tile, values, rows, width, levels, received, sequence, start, ends[sequence])
            unlift(tile, rows, width, levels, gains, sequence, start, ends[sequence])
            write_rows(target, 0, sequence, head, start, rows, ends[sequence], scratch, 0)


@jit
def collect(
    tile: Any, values: Any, rows: int, width: int, levels: int, received: Any, sequence: int, start: int, end: int
) -> None:  # fmt: skip
    """received += the products of orthonormal coefficients, which are 2^(level / 2) times those in the tiles."""
    step = 1
    for level in range(1, levels + 1):
        for row in range(0, min(rows, end - start), 2 * step):
            detail = (row + step) * width
            product = dot_rows(advance(tile, detail), advance(values, detail), width)
            received[sequence, start + row, level - 1] += product * (2 * step)
        step *= 2
    for row in range(0, min(rows, end - start), step):
        product = dot_rows(advance(tile, row * width), advance(values, row * width), width)
        received[sequence, start + row, levels] += product * step
