"""Forward pass of self-attention on a CPU."""

from typing import Any, NamedTuple

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, advance, broadcast, exp2_near, load, maximum, pointer, store
from seqattn.kernels.self_attention.cpu_tiles import (
    TILE,
    accumulate,
    clear_columns,
    copy_rows,
    products,
    rows_to_columns,
)

LOWEST = -126.0
"""Scores so far below the largest one count as 2^LOWEST of it, which is nothing."""


class Scratch(NamedTuple):
    """A thread's working memory."""

    key: Any  # (length, width), and so on
    value: Any
    query: Any
    columns: Any  # (width, LANES): queries
    sums: Any  # (width, LANES): weighted values
    tile: Any  # (TILE, LANES)
    ends: Any  # (2, LANES): largest score and sum of the weights


def scratch_size(length: int, width: int) -> int:
    """Elements behind `Scratch`."""
    return 3 * length * width + (2 * width + TILE + 2) * LANES


@jit
def scratch_in(scratch: Any, length: int, width: int) -> Any:
    key, size = pointer(scratch, 0), length * width
    columns = advance(key, 3 * size)
    tile = advance(columns, 2 * width * LANES)
    return Scratch(
        key, advance(key, size), advance(key, 2 * size), columns, advance(columns, width * LANES), tile,
        advance(tile, TILE * LANES),
    )  # fmt: skip


@jit
def weigh(tile: Any, count: int, one: Any, lowest: Any, top: Any, total: Any) -> Any:
    """Scores -> 2^(score - the largest so far); returns that, the sum of weights, and what earlier ones shrink by."""
    before = top
    for j in range(count):
        top = maximum(top, load(tile, j * LANES))
    shrink = exp2_near(maximum(before - top, lowest), one)
    total = total * shrink
    for j in range(count):
        weight = exp2_near(maximum(load(tile, j * LANES) - top, lowest), one)
        total = total + weight
        store(tile, j * LANES, weight)
    return top, total, shrink


@jit
def attend(s: Any, end: int, width: int, one: Any, lowest: Any) -> None:
    """For the queries in s.columns: s.sums, and in s.ends the largest score and the sum of the weights."""
    zero = one - one
    clear_columns(s.sums, width, zero)
    products(s.columns, s.key, 1, width, s.tile)
    top, total = load(s.tile, 0), zero  # the first key's score: the largest so far
    for start in range(0, end, TILE):
        count = min(TILE, end - start)
        products(s.columns, advance(s.key, start * width), count, width, s.tile)
        top, total, shrink = weigh(s.tile, count, one, lowest, top, total)
        for d in range(width):
            store(s.sums, d * LANES, load(s.sums, d * LANES) * shrink)
        accumulate(s.tile, advance(s.value, start * width), count, width, s.sums)
    store(s.ends, 0, top)
    store(s.ends, LANES, total)


@jit
def forward_tasks(
    packed: Any, ends: Any, rate: Any, out: Any, normaliser: Any, scratch: Any, task: int, stop: int
) -> None:
    """Tasks `task` … `stop` - 1 of batch · heads; arrays as in `register_self_attention`, rate (1,)."""
    length, heads, width = packed.shape[1], packed.shape[3], packed.shape[4]
    s, stride, kind = scratch_in(scratch, length, width), 3 * heads * width, packed.dtype.type
    one, lowest = broadcast(kind(1)), broadcast(kind(LOWEST))
    for index in range(task, stop):
        row, head = index // heads, index % heads
        end, at = ends[row], (row * length * 3 * heads + head) * width
        copy_rows(pointer(packed, 0), at, stride, end, width, s.query)
        copy_rows(pointer(packed, 0), at + heads * width, stride, end, width, s.key)
        copy_rows(pointer(packed, 0), at + 2 * heads * width, stride, end, width, s.value)
        for first in range(0, end, LANES):
            count = min(LANES, end - first)
            rows_to_columns(advance(s.query, first * width), count, width, rate[0], s.columns)
            attend(s, end, width, one, lowest)
            for i in range(count):
                total = s.ends[LANES + i]
                normaliser[row, head, first + i] = s.ends[i] + np.log2(total)
                factor = 1 / total
                for d in range(width):
                    out[row, first + i, head, d] = s.sums[d * LANES + i] * factor
        for i in range(end, length):
            normaliser[row, head, i] = 0
            for d in range(width):
                out[row, i, head, d] = 0
