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
    load_broadcast,
    maximum,
    pointer,
    sigmoid,
    softplus,
    store,
)
from seqattn.kernels.selective_scan.cpu_tiles import (
    block_of,
    blocks_of,
    clear,
    prefetch_steps,
    read_column,
    read_row,
    read_steps,
    run_size,
    runs_of,
    step_of,
    widest_lane,
    write_column,
    write_row,
    write_steps,
)
from seqattn.kernels.selective_scan.cpu_unrolled import scan_windows_of_4, scan_windows_of_8


class Tiles(NamedTuple):
    """A thread's working memory."""

    constants: Any  # rows D, delta_bias, 0 and one to spare
    rates: Any  # (state, LANES): A log2(e)
    h: Any  # (state, LANES)
    u: Any  # (steps, LANES), and so on
    raw: Any  # delta + delta_bias
    step: Any  # softplus(raw)
    x: Any  # step u
    y: Any
    z: Any
    a: Any  # exp(step A) of one state
    look: Any  # what the window holds beyond each step, of one state


def scratch_size(states: int, steps: int) -> int:
    """Elements behind `Tiles`."""
    return (4 + 2 * states + 8 * steps) * LANES


@jit
def tiles_in(scratch: Any, states: int, steps: int) -> Any:
    constants, rates = pointer(scratch, 0), pointer(scratch, 4 * LANES)
    t, size = advance(rates, 2 * states * LANES), steps * LANES
    return Tiles(
        constants, rates, advance(rates, states * LANES), t, advance(t, size), advance(t, 2 * size),
        advance(t, 3 * size), advance(t, 4 * size), advance(t, 5 * size), advance(t, 6 * size), advance(t, 7 * size),
    )  # fmt: skip


@jit
def prepare_steps(
    delta: Any, u: Any, constants: Any, delta_softplus: bool, steps: int, raw: Any, step: Any, x: Any
) -> float:
    """From the tiles delta and u: raw = delta + delta_bias, step = softplus(raw), x = step u.

    Returns the largest |step|; a NaN is passed over.
    """
    bias, widest = load(constants, LANES), load(constants, 2 * LANES)
    for at in range(0, steps * LANES, LANES):
        r = load(delta, at) + bias
        size = softplus(r) if delta_softplus else r
        store(raw, at, r)
        store(step, at, size)
        store(x, at, size * load(u, at))
        widest = maximum(widest, size * size)
    store(constants, 3 * LANES, widest)
    return np.sqrt(widest_lane(constants, 3))


@jit
def scan_state(
    step: Any, rate: Any, near: bool, x: Any, B: Any, C: Any, stride: int, steps: int, own: bool, h: Any, y: Any
) -> Any:
    """One state over a chunk: h = exp(step A) h + x B, y += C h, or C exp(step A) h without `own`; returns the last h.

    rate: A log2(e); near: whether every |step A log2(e)| is at most NEAR; B, C: the state's, `stride` apart.
    """
    for s in range(steps):
        at, at_B = s * LANES, s * stride
        size = load(step, at)
        decayed = (exp2_near(size, rate) if near else exp2(size * rate)) * h
        h = decayed + load(x, at) * load_broadcast(B, at_B)
        store(y, at, load(y, at) + (h if own else decayed) * load_broadcast(C, at_B))
    return h


@jit
def look_ahead(
    step: Any, rate: Any, near: bool, x: Any, B: Any, stride: int, steps: int, window: int, zero: Any, a: Any, look: Any
) -> None:
    """One state's local scans over a chunk: keeps a = exp(step A), and in look what a window holds beyond each step."""
    for start in range(0, steps, window):
        k = zero
        for s in range(min(start + window, steps) - 1, start - 1, -1):
            at = s * LANES
            size = load(step, at)
            transition = exp2_near(size, rate) if near else exp2(size * rate)
            beyond = transition * k
            k = beyond + load(x, at) * load_broadcast(B, s * stride)
            store(a, at, transition)
            store(look, at, beyond)


@jit
def scan_state_looking(a: Any, look: Any, x: Any, B: Any, C: Any, stride: int, steps: int, h: Any, y: Any) -> Any:
    """`scan_state` with what `look_ahead` kept: y += C (h + look)."""
    for s in range(steps):
        at, at_B = s * LANES, s * stride
        h = load(a, at) * h + load(x, at) * load_broadcast(B, at_B)
        store(y, at, load(y, at) + (h + load(look, at)) * load_broadcast(C, at_B))
    return h


@jit
def scan_windows(
    window: int, near: bool, t: Any, rate: Any, B: Any, C: Any, stride: int, steps: int, zero: Any, h: Any
) -> Any:  # fmt: skip
    """One state over a chunk with windows: t.y += C (h + look-ahead); returns the last h."""
    whole = near and steps % window == 0
    if whole and window == 4:
        return scan_windows_of_4(t.step, rate, t.x, B, C, stride, steps, h, t.y)
    if whole and window == 8:
        return scan_windows_of_8(t.step, rate, t.x, B, C, stride, steps, h, t.y)
    look_ahead(t.step, rate, near, t.x, B, stride, steps, window, zero, t.a, t.look)
    return scan_state_looking(t.a, t.look, t.x, B, C, stride, steps, h, t.y)


@jit
def gate_steps(y: Any, z: Any, steps: int) -> None:
    """y *= SiLU(z)."""
    for at in range(0, steps * LANES, LANES):
        gate = load(z, at)
        store(y, at, load(y, at) * (gate * sigmoid(gate)))


@jit
def skip_steps(skip: Any, u: Any, others: Any, at: int, stride: int, width: int, steps: int, y: Any) -> None:
    """y = D u + others, where others is an array, (batch, length, channels) or empty."""
    if others.size:
        read_steps(pointer(others, 0), at, stride, width, steps, y)
    for s in range(0, steps * LANES, LANES):
        own = skip * load(u, s)
        store(y, s, own + load(y, s) if others.size else own)


@jit
def enter_block(p: Any, b: Any, first_states: Any, t: Any) -> float:
    """Fill constants, rates and h (from an array like `initial`); returns the largest |A log2(e)|."""
    channels, states, fastest = p.u.shape[2], p.B.shape[3], p.u.dtype.type(0)
    read_row(pointer(p.D, 0), b.first, b.width, t.constants, 0)
    read_row(pointer(p.bias, 0), b.first, b.width, t.constants, 1)
    store(t.constants, 2 * LANES, broadcast(p.u.dtype.type(0)))
    for n in range(states):
        read_row(pointer(p.A, 0), n * channels + b.first, b.width, t.rates, n)
        read_column(pointer(first_states, 0), (b.row * channels + b.first) * states + n, states, b.width, t.h, n)
        fastest = max(fastest, widest_lane(t.rates, n))
    return fastest


@jit
def forward_chunk(
    p: Any, b: Any, fastest: float, step: int, steps: int, others: Any, out: Any, chunk: Any, t: Any
) -> None:
    """The chunk whose first step is `step`: writes h to `chunk`, takes it through the chunk, and writes out."""
    channels, groups, states = p.u.shape[2], p.B.shape[2], p.B.shape[3]
    sign = -1 if p.reverse != p.local else 1
    stride, stride_B = sign * channels, sign * groups * states
    row_step = b.row * p.u.shape[1] + step
    at, at_B = row_step * channels + b.first, (row_step * groups + b.group) * states
    read_steps(pointer(p.u, 0), at, stride, b.width, steps, t.u)
    read_steps(pointer(p.delta, 0), at, stride, b.width, steps, t.raw)
    prefetch_steps(pointer(p.u, 0), at + steps * stride, stride, p.chunk)
    prefetch_steps(pointer(p.delta, 0), at + steps * stride, stride, p.chunk)
    if p.z.size > 0:
        prefetch_steps(pointer(p.z, 0), at, stride, steps)
    near = prepare_steps(t.raw, t.u, t.constants, p.softplus, steps, t.raw, t.step, t.x) * fastest <= NEAR
    skip_steps(load(t.constants, 0), t.u, others, at, stride, b.width, steps, t.y)
    zero = load(t.constants, 2 * LANES)
    for n in range(states):
        write_row(chunk, n * channels, b.width, t.h, n)
        h, rate = load(t.h, n * LANES), load(t.rates, n * LANES)
        B, C = pointer(p.B, at_B + n), pointer(p.C, at_B + n)
        if p.window > 1:
            h = scan_windows(p.window, near, t, rate, B, C, stride_B, steps, zero, h)
        else:
            h = scan_state(t.step, rate, near, t.x, B, C, stride_B, steps, not p.local, h, t.y)
        store(t.h, n * LANES, h)
    if p.z.size > 0:
        read_steps(pointer(p.z, 0), at, stride, b.width, steps, t.z)
        gate_steps(t.y, t.z, steps)
    write_steps(pointer(out, 0), at, stride, b.width, steps, t.y)


@jit
def forward_tasks(p: Any, others: Any, out: Any, last: Any, chunks: Any, scratch: Any, task: int, stop: int) -> None:
    """Tasks `task` … `stop` - 1 of batch · groups · blocks; arrays as in `cpu.scan`."""
    length, channels, groups, states = p.u.shape[1], p.u.shape[2], p.B.shape[2], p.B.shape[3]
    blocks, t = blocks_of(p), tiles_in(scratch, states, min(p.chunk, length))
    for index in range(task, stop):
        b = block_of(p, index // (groups * blocks), index // blocks % groups, index % blocks)
        fastest = enter_block(p, b, p.initial, t)
        for run in range(runs_of(p)):
            if p.local:
                clear(t.h, 0, LANES, LANES, states)
            size, number = run_size(p, b.end, run), b.row * chunks.shape[1] + run * ((p.run + p.chunk - 1) // p.chunk)
            for start in range(0, size, p.chunk):
                chunk = pointer(chunks, (number + start // p.chunk) * states * channels + b.first)
                step, steps = step_of(p, b.end, run, start), min(p.chunk, size - start)
                forward_chunk(p, b, fastest, step, steps, others, out, chunk, t)
        clear(pointer(out, 0), (b.row * length + b.end) * channels + b.first, channels, b.width, length - b.end)
        if not p.local:  # an operator's outputs are defined everywhere
            used, kept = (b.end + p.chunk - 1) // p.chunk, chunks.shape[1]
            unused = pointer(chunks, (b.row * kept + used) * states * channels + b.first)
            clear(unused, 0, channels, b.width, (kept - used) * states)
        for n in range(states):
            write_column(pointer(last, 0), (b.row * channels + b.first) * states + n, states, b.width, t.h, n)
