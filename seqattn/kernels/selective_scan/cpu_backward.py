"""Backward pass of the CPU scan: blocks of channels, from their last chunk to their first."""

from typing import Any, NamedTuple

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import (
    LANES,
    NEAR,
    advance,
    broadcast,
    load,
    maximum,
    pointer,
    prefetch,
    prefetch_write,
    sigmoid,
    softplus,
    softplus_slope,
    store,
)
from seqattn.kernels.selective_scan.cpu_forward import enter_block
from seqattn.kernels.selective_scan.cpu_states import GROUP, each, load_group, load_like
from seqattn.kernels.selective_scan.cpu_sweeps import gradients, gradients_looking, replay
from seqattn.kernels.selective_scan.cpu_tiles import (
    block_of,
    blocks_of,
    chunk_of,
    clear,
    read_row,
    read_steps,
    run_size,
    runs_of,
    saved_before,
    scan_of,
    widest_lane,
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


@jit
def addresses_of(g: Any) -> Any:
    """Gradients as the addresses of their first elements."""
    return Gradients(
        pointer(g.u, 0), pointer(g.delta, 0), pointer(g.A, 0), pointer(g.B, 0), pointer(g.C, 0), pointer(g.D, 0),
        pointer(g.z, 0), pointer(g.bias, 0), pointer(g.initial, 0),
    )  # fmt: skip


class Tiles(NamedTuple):
    """A thread's working memory."""

    constants: Any  # rows D, delta_bias, and one to spare
    sums: Any  # rows sum of g u, sum of the gradient of raw
    rates: Any  # (state, LANES): A log2(e)
    h: Any  # (state, LANES): a_{t+1} lambda_{t+1} of the step t where a sweep starts
    entry: Any  # (state, LANES): what a chunk is entered with
    rate_sums: Any  # (state, LANES): sum of step q
    u: Any  # (steps, LANES), and so on
    step: Any
    slope: Any  # derivative of step
    x: Any
    y: Any
    g: Any
    gate_slope: Any
    into_b: Any  # sum over the states of B tau
    into_step: Any  # sum over the states of A q
    a: Any  # (steps, GROUP, LANES): of a group of states, as all below
    ah: Any  # a_t h_{t-1}
    mu: Any  # of one window


def scratch_size(states: int, steps: int) -> int:
    """Elements behind `Tiles`."""
    return (5 + 4 * states + (9 + 3 * GROUP) * steps) * LANES


@jit
def tiles_in(scratch: Any, states: int, steps: int) -> Any:
    row, size, group = states * LANES, steps * LANES, GROUP * steps * LANES
    rates = pointer(scratch, 5 * LANES)
    t = advance(rates, 4 * row)
    a = advance(t, 9 * size)
    return Tiles(
        pointer(scratch, 0), pointer(scratch, 3 * LANES), rates, advance(rates, row), advance(rates, 2 * row),
        advance(rates, 3 * row), t, advance(t, size), advance(t, 2 * size), advance(t, 3 * size), advance(t, 4 * size),
        advance(t, 5 * size), advance(t, 6 * size), advance(t, 7 * size), advance(t, 8 * size), a, advance(a, group),
        advance(a, 2 * group),
    )  # fmt: skip


@jit
def prepare_steps(p: Any, b: Any, c: Any, grads: Any, t: Any) -> float:
    """Fill u, step, slope and x, and into_b and into_step with zeros. Returns the largest |step|."""
    read_steps(p.u, c, b.width, t.u)
    read_steps(p.delta, c, b.width, t.step)
    bias, zero, widest = load(t.constants, LANES), broadcast(p.zero), broadcast(p.zero)
    for s in range(c.steps):
        row, here = s * LANES, c.at + s * c.stride
        prefetch(p.u, here - p.chunk * c.stride)  # the next chunk lies before this one
        prefetch(p.delta, here - p.chunk * c.stride)
        prefetch_write(grads.u, here)
        prefetch_write(grads.delta, here)
        raw = load(t.step, row) + bias
        step = softplus(raw) if p.softplus else raw
        if p.softplus:
            store(t.slope, row, softplus_slope(raw))
        store(t.step, row, step)
        store(t.x, row, step * load(t.u, row))
        store(t.into_b, row, zero)
        store(t.into_step, row, zero)
        widest = maximum(widest, step * step)
    store(t.constants, 2 * LANES, widest)
    return np.sqrt(widest_lane(t.constants, 2))


@jit
def prepare_gate(p: Any, b: Any, c: Any, grad_out: Any, grads: Any, t: Any) -> None:
    """Fill g, the gradient before the gate; with a gate also gate_slope, and y = D u + others."""
    read_steps(grad_out, c, b.width, t.g)
    if not p.gated:
        return
    read_steps(p.z, c, b.width, t.gate_slope)
    if p.joined:
        read_steps(p.others, c, b.width, t.y)
    skip = load(t.constants, 0)
    for s in range(c.steps):
        row, here = s * LANES, c.at + s * c.stride
        prefetch(grad_out, here - p.chunk * c.stride)
        prefetch(p.z, here - p.chunk * c.stride)
        prefetch_write(grads.z, here)
        gate, grad, own = load(t.gate_slope, row), load(t.g, row), skip * load(t.u, row)
        share = sigmoid(gate)
        silu = gate * share
        store(t.gate_slope, row, grad * (share + silu - silu * share))
        store(t.g, row, grad * silu)
        store(t.y, row, own + load(t.y, row) if p.joined else own)


@jit
def group_gradients(p: Any, c: Any, n: int, rates: Any, near: bool, grad_B: Any, grad_C: Any, t: Any) -> None:
    """The states from n on that have these rates, over a chunk."""
    own, at, row, stride = not p.local, c.at_B + n, n * LANES, c.stride_B
    B, C, grad_B, grad_C = advance(p.B, at), advance(p.C, at), advance(grad_B, at), advance(grad_C, at)
    A = rates * each(broadcast(p.ln2), rates)
    h, carry, rate_sum = load_like(t.entry, row, A), load_like(t.h, row, A), load_like(t.rate_sums, row, A)
    replay(t.step, rates, near, t.x, B, C, stride, c.steps, own, h, p.gated, t.a, t.ah, t.y)
    if p.window > 1:
        zero = each(broadcast(p.zero), A)
        carry, rate_sum = gradients_looking(
            A, t.step, t.x, t.g, B, C, stride, c.steps, p.window, zero, p.gated, t.a, t.ah, t.mu, carry,
            rate_sum, t.into_b, t.into_step, t.y, grad_B, grad_C,
        )  # fmt: skip
    else:
        carry, rate_sum = gradients(
            A, t.step, t.x, t.g, B, C, stride, c.steps, own, t.a, t.ah, carry, rate_sum, t.into_b, t.into_step, grad_B,
            grad_C,
        )  # fmt: skip
    store(t.h, row, carry)
    store(t.rate_sums, row, rate_sum)


@jit
def finish_steps(p: Any, b: Any, c: Any, grads: Any, t: Any) -> None:
    """Write the gradients of u, delta and z; add to the sums."""
    skip, skip_sum, bias_sum = load(t.constants, 0), load(t.sums, 0), load(t.sums, LANES)
    for row in range(0, c.steps * LANES, LANES):
        to_b, u, g = load(t.into_b, row), load(t.u, row), load(t.g, row)
        slope = load(t.into_step, row) + u * to_b
        if p.softplus:
            slope = slope * load(t.slope, row)
        skip_sum, bias_sum = skip_sum + g * u, bias_sum + slope
        store(t.into_b, row, skip * g + load(t.step, row) * to_b)
        store(t.into_step, row, slope)
        if p.gated:
            store(t.gate_slope, row, load(t.gate_slope, row) * load(t.y, row))
    store(t.sums, 0, skip_sum)
    store(t.sums, LANES, bias_sum)
    write_steps(grads.u, c, b.width, t.into_b)
    write_steps(grads.delta, c, b.width, t.into_step)
    if p.gated:
        write_steps(grads.z, c, b.width, t.gate_slope)


@jit
def backward_chunk(
    p: Any, b: Any, c: Any, fastest: float, grad_B: Any, grad_C: Any, grad_out: Any, saved: Any, grads: Any, t: Any
) -> None:
    """A chunk that was entered with the states at `saved`."""
    near = prepare_steps(p, b, c, grads, t) * fastest <= NEAR
    prepare_gate(p, b, c, grad_out, grads, t)
    for n in range(p.states):
        read_row(saved, n * p.channels, b.width, t.entry, n)
    grouped = p.states // GROUP * GROUP
    for n in range(0, grouped, GROUP):
        group_gradients(p, c, n, load_group(t.rates, n * LANES), near, grad_B, grad_C, t)
    for n in range(grouped, p.states):
        group_gradients(p, c, n, load(t.rates, n * LANES), near, grad_B, grad_C, t)
    finish_steps(p, b, c, grads, t)


@jit
def backward_block(
    p: Any, b: Any, grad_B: Any, grad_C: Any, grad_out: Any, grad_last: Any, chunks: Any, kept: int, grads: Any, t: Any
) -> None:
    """One block of channels of a sequence, from its last run and chunk to its first; adds to grad_B and grad_C."""
    fastest = enter_block(p, b, grad_last, t)
    clear(t.rate_sums, 0, LANES, LANES, p.states)
    clear(t.sums, 0, LANES, LANES, 2)
    for run in range(runs_of(p) - 1, -1, -1):
        if p.local:
            clear(t.h, 0, LANES, LANES, p.states)
        size, number = run_size(p, b.end, run), saved_before(p, b.row, kept, run)
        for start in range((size - 1) // p.chunk * p.chunk, -1, -p.chunk):
            saved = advance(chunks, (number + start // p.chunk) * p.states * p.channels + b.first)
            backward_chunk(p, b, chunk_of(p, b, run, start), fastest, grad_B, grad_C, grad_out, saved, grads, t)
    at, row, unused = (b.row * p.length + b.end) * p.channels + b.first, b.row * p.channels + b.first, p.length - b.end
    clear(grads.u, at, p.channels, b.width, unused)
    clear(grads.delta, at, p.channels, b.width, unused)
    if p.gated:
        clear(grads.z, at, p.channels, b.width, unused)
    write_row(grads.D, row, b.width, t.sums, 0)
    write_row(grads.bias, row, b.width, t.sums, 1)
    for n in range(p.states):
        write_row(grads.A, (b.row * p.states + n) * p.channels + b.first, b.width, t.rate_sums, n)
        write_column(grads.initial, row * p.states + n, p.states, b.width, t.h, n)


@jit
def backward_tasks(
    problem: Any, parts: int, others: Any, grad_out: Any, grad_last: Any, chunks: Any, gradients: Any, scratch: Any,
    task: int, stop: int,
) -> None:  # fmt: skip
    """Tasks `task` … `stop` - 1 of batch · groups · parts; arrays as in `cpu.scan_gradients`.

    The blocks of a part follow each other and add to the same gradients of B and C; parts are summed at the end.
    """
    p, grads, kept = scan_of(problem, others), addresses_of(gradients), chunks.shape[1]
    blocks, t, row_size = blocks_of(p), tiles_in(scratch, p.states, min(p.chunk, p.length)), p.groups * p.states
    for index in range(task, stop):
        row, group, part = index // (p.groups * parts), index // parts % p.groups, index % parts
        at = part * problem.B.size
        grad_B, grad_C = advance(grads.B, at), advance(grads.C, at)
        first = row * p.length * row_size + group * p.states
        clear(grad_B, first, row_size, p.states, p.length)
        clear(grad_C, first, row_size, p.states, p.length)
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            b = block_of(p, row, group, block)
            backward_block(
                p, b, grad_B, grad_C, pointer(grad_out, 0), pointer(grad_last, 0), pointer(chunks, 0), kept, grads, t
            )
