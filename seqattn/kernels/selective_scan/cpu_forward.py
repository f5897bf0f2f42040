"""Forward pass of the CPU scan."""

from typing import Any, NamedTuple

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import (
    LANES,
    NEAR,
    advance,
    broadcast,
    exp2,
    exp2_near,
    load,
    maximum,
    pointer,
    prefetch,
    prefetch_write,
    sigmoid,
    softplus,
    store,
)
from seqattn.kernels.selective_scan.cpu_states import GROUP, add_products, each, load_each, load_group, load_like
from seqattn.kernels.selective_scan.cpu_tiles import (
    block_of,
    blocks_of,
    chunk_of,
    clear,
    read_column,
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


class Tiles(NamedTuple):
    """A thread's working memory."""

    constants: Any  # rows D, delta_bias, and one to spare
    rates: Any  # (state, LANES): A log2(e)
    h: Any  # (state, LANES)
    step: Any  # (steps, LANES): softplus(delta + delta_bias)
    x: Any  # (steps, LANES): step u
    y: Any  # (steps, LANES)
    a: Any  # (steps, GROUP, LANES): exp(step A) of a group of states in one window


def scratch_size(states: int, steps: int) -> int:
    """Elements behind `Tiles`."""
    return (3 + 2 * states + (3 + GROUP) * steps) * LANES


@jit
def tiles_in(scratch: Any, states: int, steps: int) -> Any:
    constants, row, size = pointer(scratch, 0), states * LANES, steps * LANES
    rates = advance(constants, 3 * LANES)
    t = advance(rates, 2 * row)
    return Tiles(constants, rates, advance(rates, row), t, advance(t, size), advance(t, 2 * size), advance(t, 3 * size))


@jit
def prepare_steps(p: Any, b: Any, c: Any, out: Any, t: Any) -> float:
    """Fill step, x and y = D u + others. Returns the largest |step|; a NaN is passed over."""
    read_steps(p.u, c, b.width, t.x)
    read_steps(p.delta, c, b.width, t.step)
    if p.joined:
        read_steps(p.others, c, b.width, t.y)
    skip, bias, widest = load(t.constants, 0), load(t.constants, LANES), broadcast(p.zero)
    for s in range(c.steps):
        row, here = s * LANES, c.at + s * c.stride
        prefetch(p.u, here + p.chunk * c.stride)  # rows a page apart are not foreseen by the processor
        prefetch(p.delta, here + p.chunk * c.stride)
        prefetch_write(out, here)
        if p.gated:
            prefetch(p.z, here)
        raw, u = load(t.step, row) + bias, load(t.x, row)
        step = softplus(raw) if p.softplus else raw
        store(t.step, row, step)
        store(t.x, row, step * u)
        store(t.y, row, skip * u + load(t.y, row) if p.joined else skip * u)
        widest = maximum(widest, step * step)
    store(t.constants, 2 * LANES, widest)
    return np.sqrt(widest_lane(t.constants, 2))


@jit
def scan_states(
    step: Any, rates: Any, near: bool, x: Any, B: Any, C: Any, stride: int, steps: int, own: bool, h: Any, y: Any
) -> Any:
    """A group of states over a chunk: h = exp(step A) h + x B, y += C h, or C exp(step A) h without `own`.

    Returns the last h.

    rates: A log2(e); near: whether every |step A log2(e)| is at most NEAR; B, C: the states', `stride` apart.
    """
    for s in range(steps):
        at, at_B = s * LANES, s * stride
        size = each(load(step, at), h)
        decayed = (exp2_near(size, rates) if near else exp2(size * rates)) * h
        h = decayed + each(load(x, at), h) * load_each(B, at_B, h)
        store(y, at, add_products(load(y, at), h if own else decayed, load_each(C, at_B, h)))
    return h


@jit
def scan_windows(
    step: Any, rates: Any, near: bool, x: Any, B: Any, C: Any, stride: int, steps: int, window: int, zero: Any, h: Any,
    y: Any, a: Any,
) -> Any:  # fmt: skip
    """`scan_states` with windows: to y also goes C times what the window holds beyond the step. a takes one window."""
    for start in range(0, steps, window):
        stop, k = min(start + window, steps), zero
        for s in range(stop - 1, start - 1, -1):
            at, at_a = s * LANES, (s - start) * GROUP * LANES
            size = each(load(step, at), h)
            transition = exp2_near(size, rates) if near else exp2(size * rates)
            beyond = transition * k
            k = beyond + each(load(x, at), h) * load_each(B, s * stride, h)
            store(a, at_a, transition)
            store(y, at, add_products(load(y, at), beyond, load_each(C, s * stride, h)))
        for s in range(start, stop):
            at, at_a = s * LANES, (s - start) * GROUP * LANES
            h = load_like(a, at_a, h) * h + each(load(x, at), h) * load_each(B, s * stride, h)
            store(y, at, add_products(load(y, at), h, load_each(C, s * stride, h)))
    return h


@jit
def scan_group(p: Any, c: Any, n: int, rates: Any, near: bool, t: Any) -> None:
    """The states from n on that have these rates, over a chunk: t.h, t.y."""
    B, C, h = advance(p.B, c.at_B + n), advance(p.C, c.at_B + n), load_like(t.h, n * LANES, rates)
    if p.window > 1:
        zero = each(broadcast(p.zero), rates)
        h = scan_windows(t.step, rates, near, t.x, B, C, c.stride_B, c.steps, p.window, zero, h, t.y, t.a)
    else:
        h = scan_states(t.step, rates, near, t.x, B, C, c.stride_B, c.steps, not p.local, h, t.y)
    store(t.h, n * LANES, h)


@jit
def finish_steps(p: Any, b: Any, c: Any, out: Any, t: Any) -> None:
    """Write out: y, times SiLU(z)."""
    if p.gated:
        read_steps(p.z, c, b.width, t.x)
        for row in range(0, c.steps * LANES, LANES):
            gate = load(t.x, row)
            store(t.y, row, load(t.y, row) * (gate * sigmoid(gate)))
    write_steps(out, c, b.width, t.y)


@jit
def enter_block(p: Any, b: Any, first_states: Any, t: Any) -> float:
    """Fill constants, rates and h (from an array like `initial`); returns the largest |A log2(e)|."""
    fastest = p.zero
    read_row(p.D, b.first, b.width, t.constants, 0)
    read_row(p.bias, b.first, b.width, t.constants, 1)
    for n in range(p.states):
        read_row(p.A, n * p.channels + b.first, b.width, t.rates, n)
        read_column(first_states, (b.row * p.channels + b.first) * p.states + n, p.states, b.width, t.h, n)
        fastest = max(fastest, widest_lane(t.rates, n))
    return fastest


@jit
def forward_chunk(p: Any, b: Any, c: Any, fastest: float, out: Any, saved: Any, t: Any) -> None:
    """Write h to `saved`, take it through the chunk, and write out."""
    near = prepare_steps(p, b, c, out, t) * fastest <= NEAR
    for n in range(p.states):
        write_row(saved, n * p.channels, b.width, t.h, n)
    grouped = p.states // GROUP * GROUP
    for n in range(0, grouped, GROUP):
        scan_group(p, c, n, load_group(t.rates, n * LANES), near, t)
    for n in range(grouped, p.states):
        scan_group(p, c, n, load(t.rates, n * LANES), near, t)
    finish_steps(p, b, c, out, t)


@jit
def forward_block(p: Any, b: Any, out: Any, last: Any, chunks: Any, kept: int, t: Any) -> None:
    """One block of channels of a sequence."""
    fastest, row = enter_block(p, b, p.initial, t), b.row * p.channels + b.first
    for run in range(runs_of(p)):
        if p.local:
            clear(t.h, 0, LANES, LANES, p.states)
        number = saved_before(p, b.row, kept, run)
        for start in range(0, run_size(p, b.end, run), p.chunk):
            saved = advance(chunks, (number + start // p.chunk) * p.states * p.channels + b.first)
            forward_chunk(p, b, chunk_of(p, b, run, start), fastest, out, saved, t)
    clear(out, (b.row * p.length + b.end) * p.channels + b.first, p.channels, b.width, p.length - b.end)
    if not p.local:  # an operator's outputs are defined everywhere
        used = (b.end + p.chunk - 1) // p.chunk
        unused = (b.row * kept + used) * p.states * p.channels + b.first
        clear(chunks, unused, p.channels, b.width, (kept - used) * p.states)
    for n in range(p.states):
        write_column(last, row * p.states + n, p.states, b.width, t.h, n)


@jit
def forward_tasks(
    problem: Any, others: Any, out: Any, last: Any, chunks: Any, scratch: Any, task: int, stop: int
) -> None:
    """Tasks `task` … `stop` - 1 of batch · groups · blocks; arrays as in `cpu.scan`."""
    p = scan_of(problem, others)
    blocks, t, kept = blocks_of(p), tiles_in(scratch, p.states, min(p.chunk, p.length)), chunks.shape[1]
    for index in range(task, stop):
        b = block_of(p, index // (p.groups * blocks), index // blocks % p.groups, index % blocks)
        forward_block(p, b, pointer(out, 0), pointer(last, 0), pointer(chunks, 0), kept, t)
