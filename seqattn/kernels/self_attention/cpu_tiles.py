"""The two products of attention with a query, or a key, in each lane, and how rows become lanes.

Columns hold `width` vectors, one a channel; rows are (count, width) numbers; a tile holds a vector a row. Inside the
kernels all are given by the address of their first element; `width` is a multiple of GROUP.
"""

from typing import Any

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, load, load_broadcast, store
from seqattn.kernels.self_attention.public import GROUP

TILE = 64
"""Rows of a tile."""


@jit
def products(columns: Any, rows: Any, count: int, width: int, tile: Any) -> None:
    """tile_j = Σ_d columns_d rows_jd."""
    for group in range(0, width, GROUP):
        at = group * LANES
        c0, c1, c2, c3 = (
            load(columns, at), load(columns, at + LANES), load(columns, at + 2 * LANES), load(columns, at + 3 * LANES)
        )  # fmt: skip
        at += 4 * LANES
        c4, c5, c6, c7 = (
            load(columns, at), load(columns, at + LANES), load(columns, at + 2 * LANES), load(columns, at + 3 * LANES)
        )  # fmt: skip
        for j in range(count):
            r = j * width + group
            left = c0 * load_broadcast(rows, r) + c1 * load_broadcast(rows, r + 1)
            right = c4 * load_broadcast(rows, r + 4) + c5 * load_broadcast(rows, r + 5)
            left = left + c2 * load_broadcast(rows, r + 2)
            right = right + c6 * load_broadcast(rows, r + 6)
            left = left + c3 * load_broadcast(rows, r + 3)
            right = right + c7 * load_broadcast(rows, r + 7)
            total = left + right
            store(tile, j * LANES, total if group == 0 else load(tile, j * LANES) + total)


@jit
def accumulate(tile: Any, rows: Any, count: int, width: int, columns: Any) -> None:
    """columns_d += Σ_j tile_j rows_jd."""
    for group in range(0, width, GROUP):
        first, second = group * LANES, (group + 4) * LANES
        c0, c1, c2, c3 = (
            load(columns, first), load(columns, first + LANES), load(columns, first + 2 * LANES),
            load(columns, first + 3 * LANES),
        )  # fmt: skip
        c4, c5, c6, c7 = (
            load(columns, second), load(columns, second + LANES), load(columns, second + 2 * LANES),
            load(columns, second + 3 * LANES),
        )  # fmt: skip
        for j in range(count):
            weight, r = load(tile, j * LANES), j * width + group
            c0 = c0 + weight * load_broadcast(rows, r)
            c1 = c1 + weight * load_broadcast(rows, r + 1)
            c2 = c2 + weight * load_broadcast(rows, r + 2)
            c3 = c3 + weight * load_broadcast(rows, r + 3)
            c4 = c4 + weight * load_broadcast(rows, r + 4)
            c5 = c5 + weight * load_broadcast(rows, r + 5)
            c6 = c6 + weight * load_broadcast(rows, r + 6)
            c7 = c7 + weight * load_broadcast(rows, r + 7)
        store(columns, first, c0)
        store(columns, first + LANES, c1)
        store(columns, first + 2 * LANES, c2)
        store(columns, first + 3 * LANES, c3)
        store(columns, second, c4)
        store(columns, second + LANES, c5)
        store(columns, second + 2 * LANES, c6)
        store(columns, second + 3 * LANES, c7)


@jit
def copy_rows(array: Any, at: int, stride: int, count: int, width: int, rows: Any) -> None:
    """Rows from those at, at + stride, … of an array."""
    for j in range(count):
        for d in range(width):
            rows[j * width + d] = array[at + j * stride + d]


@jit
def rows_to_columns(rows: Any, count: int, width: int, factor: float, columns: Any) -> None:
    """Columns whose lane i is row i times factor; 0 in the lanes from count on."""
    for d in range(width):
        for i in range(LANES):
            columns[d * LANES + i] = rows[i * width + d] * factor if i < count else 0


@jit
def clear_columns(columns: Any, width: int, zero: Any) -> None:
    for d in range(width):
        store(columns, d * LANES, zero)


@jit
def lanes_of(array: Any, at: int, count: int, rest: float, vector: Any) -> None:
    """A vector from `count` consecutive elements; `rest` in its other lanes."""
    for i in range(LANES):
        vector[i] = array[at + i] if i < count else rest
