"""Backward pass of self-attention on a CPU.

With scores s, weights p = e^s / Σ e^s, g the gradient of out, and δ_i = g_i · out_i:

    ds_ij = p_ij (g_i · v_j - δ_i);   dq_i = Σ_j ds_ij k_j / sqrt(width);   dk_j = Σ_i ds_ij q_i / sqrt(width)
    dv_j = Σ_i p_ij g_i
"""

from typing import Any, NamedTuple

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import (
    LANES,
    advance,
    broadcast,
    exp2_near,
    load,
    load_broadcast,
    maximum,
    pointer,
    store,
)
from seqattn.kernels.self_attention.cpu_forward import LOWEST
from seqattn.kernels.self_attention.cpu_tiles import (
    TILE,
    accumulate,
    clear_columns,
    copy_rows,
    lanes_of,
    products,
    rows_to_columns,
)

LN2 = 0.6931471805599453


class Scratch(NamedTuple):
    """A thread's working memory."""

    query: Any  # (length, width), and so on
    key: Any
    value: Any
    grad_out: Any
    delta: Any  # (length,)
    columns: Any  # (width, LANES), and so on: queries, or keys
    others: Any  # gradients of out, or values
    sums: Any
    more_sums: Any
    tile: Any  # (TILE, LANES): weights
    slopes: Any  # (TILE, LANES): gradients of scores
    lanes: Any  # (2, LANES): normaliser and delta of a block of queries


def scratch_size(length: int, width: int) -> int:
    """Elements behind `Scratch`."""
    return 4 * length * width + length + (4 * width + 2 * TILE + 2) * LANES


@jit
def scratch_in(scratch: Any, length: int, width: int) -> Any:
    query, size, column = pointer(scratch, 0), length * width, width * LANES
    delta = advance(query, 4 * size)
    columns = advance(delta, length)
    tile = advance(columns, 4 * column)
    return Scratch(
        query, advance(query, size), advance(query, 2 * size), advance(query, 3 * size), delta, columns,
        advance(columns, column), advance(columns, 2 * column), advance(columns, 3 * column), tile,
        advance(tile, TILE * LANES), advance(tile, 2 * TILE * LANES),
    )  # fmt: skip


@jit
def query_gradients(s: Any, end: int, width: int, one: Any, lowest: Any) -> None:
    """s.sums = Σ_j ds_ij k_j of the queries in s.columns, whose gradients of out are in s.others."""
    clear_columns(s.sums, width, one - one)
    normaliser, delta = load(s.lanes, 0), load(s.lanes, LANES)
    for start in range(0, end, TILE):
        count = min(TILE, end - start)
        products(s.columns, advance(s.key, start * width), count, width, s.tile)
        products(s.others, advance(s.value, start * width), count, width, s.slopes)
        for j in range(0, count * LANES, LANES):
            weight = exp2_near(maximum(load(s.tile, j) - normaliser, lowest), one)
            store(s.slopes, j, weight * (load(s.slopes, j) - delta))
        accumulate(s.slopes, advance(s.key, start * width), count, width, s.sums)


@jit
def key_gradients(s: Any, normaliser: Any, end: int, width: int, one: Any, lowest: Any) -> None:
    """s.sums = Σ_i ds_ij q_i and s.more_sums = Σ_i p_ij g_i of the keys in s.columns, whose values are in s.others."""
    clear_columns(s.sums, width, one - one)
    clear_columns(s.more_sums, width, one - one)
    for start in range(0, end, TILE):
        count = min(TILE, end - start)
        query, grad_out = advance(s.query, start * width), advance(s.grad_out, start * width)
        products(s.columns, query, count, width, s.tile)
        products(s.others, grad_out, count, width, s.slopes)
        for i in range(count):
            score = load(s.tile, i * LANES) - load_broadcast(normaliser, start + i)
            weight = exp2_near(maximum(score, lowest), one)
            store(s.tile, i * LANES, weight)
            store(s.slopes, i * LANES, weight * (load(s.slopes, i * LANES) - load_broadcast(s.delta, start + i)))
        accumulate(s.slopes, query, count, width, s.sums)
        accumulate(s.tile, grad_out, count, width, s.more_sums)


@jit
def write_columns(columns: Any, count: int, width: int, factor: float, array: Any, at: int, stride: int) -> None:
    """Lanes 0 … count - 1 times factor, to the rows at, at + stride, …"""
    for i in range(count):
        for d in range(width):
            array[at + i * stride + d] = columns[d * LANES + i] * factor


@jit
def backward_tasks(
    packed: Any, grad_out: Any, out: Any, normaliser: Any, ends: Any, rate: Any, grad: Any, scratch: Any, task: int,
    stop: int,
) -> None:  # fmt: skip
    """Tasks `task` … `stop` - 1 of batch · heads; arrays as in `register_self_attention`, rate (1,)."""
    length, heads, width = packed.shape[1], packed.shape[3], packed.shape[4]
    s, stride, step, kind = scratch_in(scratch, length, width), 3 * heads * width, heads * width, packed.dtype.type
    one, lowest, into, unscaled = broadcast(kind(1)), broadcast(kind(LOWEST)), pointer(grad, 0), kind(1)
    scale = rate[0] * kind(LN2)
    for index in range(task, stop):
        row, head = index // heads, index % heads
        end, at, at_out = ends[row], (row * length * 3 * heads + head) * width, (row * length * heads + head) * width
        copy_rows(pointer(packed, 0), at, stride, end, width, s.query)
        copy_rows(pointer(packed, 0), at + step, stride, end, width, s.key)
        copy_rows(pointer(packed, 0), at + 2 * step, stride, end, width, s.value)
        copy_rows(pointer(grad_out, 0), at_out, step, end, width, s.grad_out)
        for i in range(end):
            total = kind(0)
            for d in range(width):
                total += s.grad_out[i * width + d] * out[row, i, head, d]
            s.delta[i] = total
        own = pointer(normaliser, (row * heads + head) * length)
        for first in range(0, end, LANES):
            count, skipped = min(LANES, end - first), first * width
            rows_to_columns(advance(s.query, skipped), count, width, rate[0], s.columns)
            rows_to_columns(advance(s.grad_out, skipped), count, width, unscaled, s.others)
            lanes_of(own, first, count, kind(0), s.lanes)
            lanes_of(s.delta, first, count, kind(0), advance(s.lanes, LANES))
            query_gradients(s, end, width, one, lowest)
            write_columns(s.sums, count, width, scale, into, at + first * stride, stride)
            rows_to_columns(advance(s.key, skipped), count, width, rate[0], s.columns)
            rows_to_columns(advance(s.value, skipped), count, width, unscaled, s.others)
            key_gradients(s, own, end, width, one, lowest)
            write_columns(s.sums, count, width, scale, into, at + step + first * stride, stride)
            write_columns(s.more_sums, count, width, unscaled, into, at + 2 * step + first * stride, stride)
        for i in range(end, length):
            for part in range(3):
                for d in range(width):
                    grad[row, i, part, head, d] = 0
