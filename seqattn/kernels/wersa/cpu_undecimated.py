"""The undecimated causal Haar filter in Numba.

Row by row, M_0 = x and M_l(t) = (M_{l-1}(t) + M_{l-1}(t - 2^{l-1})) / 2: the mean of the last 2^l tokens, in place from
the last row to the first. A block needs the 2^levels - 1 tokens before it, its adjoint those after it.
"""

from typing import Any

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, advance, broadcast, load, pointer, store
from seqattn.kernels.wersa.cpu_rows import dot_rows, padded, read_rows, write_rows


def rows_of(levels: int, at_least: int) -> tuple[int, int]:
    """Tokens of a block, and rows of scratch it takes."""
    rows = max(at_least, 2**levels)
    return rows, 4 * (rows + 2**levels - 1)


@jit
def gain_at(gains: Any, sequence: int, token: int, end: int, band: int) -> Any:
    """The gain of a token, 0 past the end."""
    return gains[sequence, token, band] if token < end else gains.dtype.type(0)


@jit
def coarser(means: Any, coarse: Any, rows: int, first: int, step: int, width: int, half: Any) -> None:
    """coarse = the means over twice as many tokens, from row `first` on."""
    for at in range(first * width, rows * width, LANES):
        store(coarse, at, (load(means, at) + load(means, at - step * width)) * broadcast(half))


@jit
def filter_blocks(
    source: Any, target: Any, inputs: Any, gains: Any, ends: Any, received: Any, shift: int, count: int, rows: int,
    scratch: Any, first: int, stop: int,
) -> None:  # fmt: skip
    """The window `target` of `count` tokens = the filter of `source`, whole sequences."""
    blocks, width, levels = -(-count // rows), padded(target.shape[3]), gains.shape[2] - 1
    halo, half = (1 << levels) - 1, target.dtype.type(0.5)
    most = rows
    for task in range(first, stop):
        sequence, start = task // blocks, shift + task % blocks * most
        end, rows = ends[sequence], min(most, shift + count - start)
        for head in range(target.shape[1]):
            means, coarse = pointer(scratch, 0), pointer(scratch, (halo + rows) * width)
            total = advance(pointer(scratch, 2 * (halo + rows) * width), halo * width)
            read_rows(source, 0, sequence, head, start - halo, halo + rows, end, scratch, 0)
            for level in range(levels):
                coarser(means, coarse, halo + rows, (2 << level) - 1, 1 << level, width, half)
                for row in range(rows):
                    gain = broadcast(gain_at(gains, sequence, start + row, end, level))
                    for at in range(row * width, (row + 1) * width, LANES):
                        there = halo * width + at
                        term = (load(means, there) - load(coarse, there)) * gain
                        store(total, at, term if level == 0 else load(total, at) + term)
                means, coarse = coarse, means
            for row in range(rows):
                gain = broadcast(gain_at(gains, sequence, start + row, end, levels))
                for at in range(row * width, (row + 1) * width, LANES):
                    store(total, at, load(total, at) + load(means, halo * width + at) * gain)
            write_rows(target, shift, sequence, head, start, rows, end, scratch, 2 * (halo + rows) + halo)


@jit
def gradient_blocks(
    source: Any, target: Any, inputs: Any, gains: Any, ends: Any, received: Any, shift: int, count: int, rows: int,
    scratch: Any, first: int, stop: int,
) -> None:  # fmt: skip
    """`count` tokens of `target`, whole sequences, = the adjoint of the causal filter of the gradients `source`.

    `source`: these tokens and the 2^levels - 1 after them, or up to the end. received += what the gains of `inputs`
    receive.
    """
    blocks, width, levels = -(-count // rows), padded(target.shape[3]), gains.shape[2] - 1
    halo, half = (1 << levels) - 1, target.dtype.type(0.5)
    most = rows
    for task in range(first, stop):
        sequence, start = task // blocks, shift + task % blocks * most
        end, rows = ends[sequence], min(most, shift + count - start)
        size = halo + rows
        for head in range(target.shape[1]):
            grads, means = pointer(scratch, 0), pointer(scratch, size * width)
            read_rows(source, shift, sequence, head, start, size, end, scratch, 0)
            read_rows(inputs, 0, sequence, head, start - halo, size, end, scratch, size)
            coarse = advance(means, size * width)
            collect(grads, means, coarse, rows, width, levels, received, sequence, start, end, half)
            spread(grads, means, rows, width, gains, sequence, start, end, half)
            write_rows(target, 0, sequence, head, start, rows, end, scratch, size)


@jit
def collect(
    grads: Any, means: Any, coarse: Any, rows: int, width: int, levels: int, received: Any, sequence: int, start: int,
    end: int, half: Any,
) -> None:  # fmt: skip
    """received += the products of gradients with the bands of the inputs; `means` holds these, from the halo on."""
    halo = (1 << levels) - 1
    for level in range(levels):
        coarser(means, coarse, halo + rows, (2 << level) - 1, 1 << level, width, half)
        for row in range(min(rows, end - start)):
            here, there = advance(grads, row * width), (halo + row) * width
            band = dot_rows(here, advance(means, there), width) - dot_rows(here, advance(coarse, there), width)
            received[sequence, start + row, level] += band
        means, coarse = coarse, means
    for row in range(min(rows, end - start)):
        product = dot_rows(advance(grads, row * width), advance(means, (halo + row) * width), width)
        received[sequence, start + row, levels] += product


@jit
def spread(
    grads: Any, total: Any, rows: int, width: int, gains: Any, sequence: int, start: int, end: int, half: Any
) -> None:  # fmt: skip
    """total = the adjoint of the filter: its levels from coarse to fine, each row adding what later rows hold of it."""
    levels = gains.shape[2] - 1
    size = rows + (1 << levels) - 1
    for row in range(size):
        token = start + row
        gain = gain_at(gains, sequence, token, end, levels) - gain_at(gains, sequence, token, end, levels - 1)
        for at in range(row * width, (row + 1) * width, LANES):
            store(total, at, load(grads, at) * broadcast(gain))
    for level in range(levels - 1, -1, -1):
        size -= 1 << level
        for row in range(size):
            token = start + row
            gain = gain_at(gains, sequence, token, end, level)
            if level > 0:
                gain -= gain_at(gains, sequence, token, end, level - 1)
            for at in range(row * width, (row + 1) * width, LANES):
                both = (load(total, at) + load(total, at + (width << level))) * broadcast(half)
                store(total, at, both + load(grads, at) * broadcast(gain))
