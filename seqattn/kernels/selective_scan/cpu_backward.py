"""Backward pass of the CPU scan: blocks of channels, from their last chunk to their first."""

from typing import Any, NamedTuple

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import (
    LANES,
    NEAR,
    advance,
    broadcast,
    lane_sums,
    load,
    pointer,
    sigmoid,
    softplus_slope,
    store,
)
from seqattn.kernels.selective_scan.cpu_forward import enter_block, look_ahead, prepare_steps, skip_steps
from seqattn.kernels.selective_scan.cpu_sweeps import gradients, gradients_looking, replay, replay_looking
from seqattn.kernels.selective_scan.cpu_tiles import (
    block_of,
    blocks_of,
    clear,
    read_row,
    read_steps,
    run_size,
    runs_of,
    step_of,
    write_column,
    write_row,
    write_steps,
)


class Gradients(NamedTuple):
    """What the backward pass writes; A, D and bias are summed over the steps of each sequence, B and C over a part."""

    u: np.ndarray  # (batch, length, channels)
    delta: np.ndarray  # (batch, length, channels)
    A: np.ndarray  # (batch, state, channels)
    B: np.ndarray  # (parts, batch, length, groups, state)
    C: np.ndarray  # (parts, batch, length, groups, state)
    D: np.ndarray  # (batch, channels)
    z: np.ndarray  # (batch, length, channels), or empty
    bias: np.ndarray  # (batch, channels)
    initial: np.ndarray  # (batch, channels, state)


class Tiles(NamedTuple):
    """A thread's working memory."""

    constants: Any  # rows D, delta_bias, 0 and one to spare
    sums: Any  # rows sum of g u, sum of the gradient of raw, and one to spare
    rates: Any  # (state, LANES): A log2(e)
    h: Any  # (state, LANES): a_{t+1} lambda_{t+1} of the step t where a sweep starts
    rate_sums: Any  # (state, LANES): sum of step q
    sums_B: Any  # (state, steps): the block's gradient of B
    sums_C: Any
    u: Any  # (steps, LANES), and so on
    raw: Any
    step: Any
    x: Any
    y: Any
    z: Any
    g: Any
    gate_slope: Any
    into_b: Any  # sum over the states of B tau
    into_step: Any  # sum over the states of A q
    a: Any  # of one state, as all below
    ah: Any  # a_t h_{t-1}
    look: Any
    entering: Any  # a_{t-1} mu_{t-1}
    for_B: Any  # what each channel gives to the gradient of B
    for_C: Any


def scratch_size(states: int, steps: int) -> int:
    """Elements behind `Tiles`."""
    return (7 + 3 * states + 16 * steps) * LANES + 2 * states * steps


@jit
def tiles_in(scratch: Any, states: int, steps: int) -> Any:
    row, size = states * LANES, steps * LANES
    rates = pointer(scratch, 7 * LANES)
    sums_B = advance(rates, 3 * row)
    t = advance(sums_B, 2 * states * steps)
    return Tiles(
        pointer(scratch, 0), pointer(scratch, 4 * LANES), rates, advance(rates, row), advance(rates, 2 * row), sums_B,
        advance(sums_B, states * steps), t, advance(t, size), advance(t, 2 * size), advance(t, 3 * size),
        advance(t, 4 * size), advance(t, 5 * size), advance(t, 6 * size), advance(t, 7 * size), advance(t, 8 * size),
        advance(t, 9 * size), advance(t, 10 * size), advance(t, 11 * size), advance(t, 12 * size),
        advance(t, 13 * size), advance(t, 14 * size), advance(t, 15 * size),
    )  # fmt: skip


@jit
def gate_gradients(grad: Any, z: Any, steps: int, gate_slope: Any) -> None:
    """grad becomes the gradient before the gate, grad · SiLU(z); gate_slope becomes grad · SiLU'(z)."""
    for at in range(0, steps * LANES, LANES):
        gate, outer = load(z, at), load(grad, at)
        s = sigmoid(gate)
        silu = gate * s
        store(gate_slope, at, outer * (s + silu - silu * s))
        store(grad, at, outer * silu)


@jit
def finish_steps(t: Any, delta_softplus: bool, steps: int) -> None:
    """into_b becomes the gradient of u, into_step that of delta; adds to the sums of the latter and of g u."""
    skip, skip_sum, bias_sum = load(t.constants, 0), load(t.sums, 0), load(t.sums, LANES)
    for at in range(0, steps * LANES, LANES):
        to_b, u, g = load(t.into_b, at), load(t.u, at), load(t.g, at)
        slope = load(t.into_step, at) + u * to_b
        if delta_softplus:
            slope = slope * softplus_slope(load(t.raw, at))
        skip_sum, bias_sum = skip_sum + g * u, bias_sum + slope
        store(t.into_b, at, skip * g + load(t.step, at) * to_b)
        store(t.into_step, at, slope)
    store(t.sums, 0, skip_sum)
    store(t.sums, LANES, bias_sum)


@jit
def sum_lanes(tile: Any, steps: int, sums: Any) -> None:
    """sums, one element a step: the sums over the lanes of a tile's rows."""
    for s in range(0, steps, LANES):
        store(sums, s, lane_sums(tile, s * LANES))


@jit
def add_states(tile: Any, size: int, states: int, steps: int, array: Any, at: int, stride: int, add: bool) -> None:
    """Add a tile (state, size) of sums to the rows of an array (steps, state) `stride` apart, or write them there."""
    for s in range(steps):
        for n in range(states):
            place = at + s * stride + n
            array[place] = tile[n * size + s] + array[place] if add else tile[n * size + s]


@jit
def state_gradients(p: Any, t: Any, n: int, near: bool, B: Any, C: Any, stride: int, steps: int, h: Any) -> None:
    """State n over a chunk that it enters with h."""
    gated, own, rate, at, zero = (
        p.z.size > 0,
        not p.local,
        load(t.rates, n * LANES),
        n * LANES,
        load(t.constants, 2 * LANES),
    )
    A, carry, rate_sum = rate * broadcast(p.u.dtype.type(np.log(2.0))), load(t.h, at), load(t.rate_sums, at)
    if p.window > 1:
        look_ahead(t.step, rate, near, t.x, B, stride, steps, p.window, zero, t.a, t.look)
        replay_looking(t.a, t.look, t.x, t.g, B, C, stride, steps, p.window, zero, h, gated, t.ah, t.entering, t.y)
        carry, rate_sum = gradients_looking(
            A, t.step, t.x, t.g, B, C, stride, steps, t.a, t.ah, t.look, t.entering, carry, rate_sum, t.into_b,
            t.into_step, t.for_B, t.for_C,
        )  # fmt: skip
    else:
        replay(t.step, rate, near, t.x, B, C, stride, steps, own, h, gated, t.a, t.ah, t.y)
        carry, rate_sum = gradients(
            A, t.step, t.x, t.g, B, C, stride, steps, own, t.a, t.ah, carry, rate_sum, t.into_b, t.into_step, t.for_B,
            t.for_C,
        )  # fmt: skip
    store(t.h, at, carry)
    store(t.rate_sums, at, rate_sum)


@jit
def backward_chunk(
    p: Any, b: Any, fastest: float, step: int, steps: int, part: int, add: bool, others: Any, grad_out: Any, chunk: Any,
    grads: Any, t: Any,
) -> None:  # fmt: skip
    """The chunk whose first step is `step`, entered with the states at `chunk`; `add` to what is in B and C already."""
    channels, groups, states = p.u.shape[2], p.B.shape[2], p.B.shape[3]
    rows = (min(p.chunk, p.u.shape[1]) + LANES - 1) // LANES * LANES
    sign = -1 if p.reverse != p.local else 1
    stride, stride_B = sign * channels, sign * groups * states
    row_step = b.row * p.u.shape[1] + step
    at, at_B = row_step * channels + b.first, (row_step * groups + b.group) * states
    read_steps(pointer(p.u, 0), at, stride, b.width, steps, t.u)
    read_steps(pointer(p.delta, 0), at, stride, b.width, steps, t.raw)
    read_steps(pointer(grad_out, 0), at, stride, b.width, steps, t.g)
    near = prepare_steps(t.raw, t.u, t.constants, p.softplus, steps, t.raw, t.step, t.x) * fastest <= NEAR
    if p.z.size > 0:
        read_steps(pointer(p.z, 0), at, stride, b.width, steps, t.z)
        gate_gradients(t.g, t.z, steps, t.gate_slope)
        skip_steps(load(t.constants, 0), t.u, others, at, stride, b.width, steps, t.y)
    clear(t.into_b, 0, LANES, LANES, steps)
    clear(t.into_step, 0, LANES, LANES, steps)
    for n in range(states):
        read_row(chunk, n * channels, b.width, t.sums, 2)
        B, C = pointer(p.B, at_B + n), pointer(p.C, at_B + n)
        state_gradients(p, t, n, near, B, C, stride_B, steps, load(t.sums, 2 * LANES))
        sum_lanes(t.for_B, steps, advance(t.sums_B, n * rows))
        sum_lanes(t.for_C, steps, advance(t.sums_C, n * rows))
    at_part = part * p.B.size + at_B
    add_states(t.sums_B, rows, states, steps, pointer(grads.B, 0), at_part, stride_B, add)
    add_states(t.sums_C, rows, states, steps, pointer(grads.C, 0), at_part, stride_B, add)
    finish_steps(t, p.softplus, steps)
    write_steps(pointer(grads.u, 0), at, stride, b.width, steps, t.into_b)
    write_steps(pointer(grads.delta, 0), at, stride, b.width, steps, t.into_step)
    if p.z.size > 0:
        for s in range(0, steps * LANES, LANES):
            store(t.gate_slope, s, load(t.gate_slope, s) * load(t.y, s))
        write_steps(pointer(grads.z, 0), at, stride, b.width, steps, t.gate_slope)


@jit
def backward_block(
    p: Any, b: Any, part: int, add: bool, others: Any, grad_out: Any, grad_last: Any, chunks: Any, grads: Any, t: Any
) -> None:
    """One block of channels of a sequence, from its last run and chunk to its first."""
    length, channels, states = p.u.shape[1], p.u.shape[2], p.B.shape[3]
    fastest = enter_block(p, b, grad_last, t)
    clear(t.rate_sums, 0, LANES, LANES, states)
    clear(t.sums, 0, LANES, LANES, 2)
    for run in range(runs_of(p) - 1, -1, -1):
        if p.local:
            clear(t.h, 0, LANES, LANES, states)
        size, number = run_size(p, b.end, run), b.row * chunks.shape[1] + run * ((p.run + p.chunk - 1) // p.chunk)
        for start in range((size - 1) // p.chunk * p.chunk, -1, -p.chunk):
            chunk = pointer(chunks, (number + start // p.chunk) * states * channels + b.first)
            step, steps = step_of(p, b.end, run, start), min(p.chunk, size - start)
            backward_chunk(p, b, fastest, step, steps, part, add, others, grad_out, chunk, grads, t)
    at, row = (b.row * length + b.end) * channels + b.first, b.row * channels + b.first
    clear(pointer(grads.u, 0), at, channels, b.width, length - b.end)
    clear(pointer(grads.delta, 0), at, channels, b.width, length - b.end)
    if p.z.size > 0:
        clear(pointer(grads.z, 0), at, channels, b.width, length - b.end)
    write_row(pointer(grads.D, 0), row, b.width, t.sums, 0)
    write_row(pointer(grads.bias, 0), row, b.width, t.sums, 1)
    for n in range(states):
        write_row(pointer(grads.A, 0), (b.row * states + n) * channels + b.first, b.width, t.rate_sums, n)
        write_column(pointer(grads.initial, 0), row * states + n, states, b.width, t.h, n)


@jit
def backward_tasks(
    p: Any, parts: int, others: Any, grad_out: Any, grad_last: Any, chunks: Any, grads: Any, scratch: Any, task: int,
    stop: int,
) -> None:  # fmt: skip
    """Tasks `task` … `stop` - 1 of batch · groups · parts; arrays as in `cpu.scan_gradients`.

    The blocks of a part follow each other and add to the same gradients of B and C; parts are summed at the end.
    """
    length, groups, states = p.u.shape[1], p.B.shape[2], p.B.shape[3]
    blocks, rows = blocks_of(p), (min(p.chunk, length) + LANES - 1) // LANES * LANES
    t = tiles_in(scratch, states, rows)
    for index in range(task, stop):
        row, group, part = index // (groups * parts), index // parts % groups, index % parts
        end, first = p.ends[row], blocks * part // parts
        at = part * p.B.size + ((row * length + end) * groups + group) * states
        clear(pointer(grads.B, 0), at, groups * states, states, length - end)
        clear(pointer(grads.C, 0), at, groups * states, states, length - end)
        for block in range(first, blocks * (part + 1) // parts):
            b = block_of(p, row, group, block)
            backward_block(p, b, part, block > first, others, grad_out, grad_last, chunks, grads, t)
