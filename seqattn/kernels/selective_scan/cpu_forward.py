"""Forward pass of the CPU scan."""

from typing import Any

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, broadcast, exp2, load, sigmoid, softplus, store
from seqattn.kernels.selective_scan.cpu_tiles import (
    block_channels,
    clear_steps,
    count_blocks,
    read_row,
    read_states,
    read_steps,
    write_row,
    write_steps,
)


@jit
def prepare_steps(delta: Any, u: Any, bias: Any, delta_softplus: bool, steps: int, raw: Any, step: Any, x: Any) -> None:
    """From the tiles delta and u: raw = delta + bias, step = softplus(raw), x = step * u."""
    for at in range(0, steps * LANES, LANES):
        r = load(delta, at) + load(bias, 0)
        size = softplus(r) if delta_softplus else r
        store(raw, at, r)
        store(step, at, size)
        store(x, at, size * load(u, at))


@jit
def scan_state(step: Any, rate: Any, x: Any, B: Any, C: Any, steps: int, h: Any, y: Any) -> Any:
    """One state over a chunk: h = exp(step A) h + x B, y += C h; returns the last h. rate is A log2(e)."""
    for s in range(steps):
        at = s * LANES
        h = exp2(load(step, at) * rate) * h + load(x, at) * broadcast(B[s])
        store(y, at, load(y, at) + h * broadcast(C[s]))
    return h


@jit
def look_ahead(step: Any, rate: Any, x: Any, B: Any, C: Any, steps: int, window: int, zero: Any, a: Any, y: Any) -> None:
    """One state's local scans over a chunk: y += C l, what the windows hold beyond each step; keeps a = exp(step A)."""
    for start in range(0, steps, window):
        k = zero
        for s in range(min(start + window, steps) - 1, start - 1, -1):
            at = s * LANES
            transition = exp2(load(step, at) * rate)
            look = transition * k
            k = look + load(x, at) * broadcast(B[s])
            store(a, at, transition)
            store(y, at, load(y, at) + look * broadcast(C[s]))


@jit
def scan_state_with(a: Any, x: Any, B: Any, C: Any, steps: int, h: Any, y: Any) -> Any:
    """`scan_state` with the transitions a given."""
    for s in range(steps):
        at = s * LANES
        h = load(a, at) * h + load(x, at) * broadcast(B[s])
        store(y, at, load(y, at) + h * broadcast(C[s]))
    return h


@jit
def gate_steps(y: Any, z: Any, steps: int) -> None:
    """y *= SiLU(z)."""
    for at in range(0, steps * LANES, LANES):
        gate = load(z, at)
        store(y, at, load(y, at) * (gate * sigmoid(gate)))


@jit
def forward_tasks(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, initial: Any, ends: Any,
    delta_softplus: bool, window: int, reverse: bool, chunk: int, out: Any, last: Any, chunks: Any, task: int, stop: int,
) -> None:  # fmt: skip
    """Tasks `task` … `stop` - 1 of batch · groups · blocks; arrays as in `cpu.forward`, A (state, channels) · log2(e)."""
    length, channels, groups, states = u.shape[1], u.shape[2], B.shape[2], B.shape[3]
    blocks, gated, size = count_blocks(channels, groups), z.size > 0, min(chunk, length)
    tiles = np.zeros((7, size, LANES), u.dtype)
    u_tile, raw, step, x, y, a, z_tile = tiles[0], tiles[1], tiles[2], tiles[3], tiles[4], tiles[5], tiles[6]
    constants = np.zeros((3, LANES), u.dtype)
    rates, h = np.zeros((states, LANES), u.dtype), np.zeros((states, LANES), u.dtype)
    B_tile, C_tile = np.zeros((states, size), u.dtype), np.zeros((states, size), u.dtype)
    for index in range(task, stop):
        row, end = index // (groups * blocks), ends[index // (groups * blocks)]
        group, first, width = block_channels(index % (groups * blocks), channels, groups, blocks)
        read_row(D, first, width, constants, 0)
        read_row(bias, first, width, constants, 1)
        skip, offset, zero = load(constants, 0), constants[1], load(constants, 2 * LANES)
        for n in range(states):
            read_row(A, n * channels + first, width, rates, n)
            for c in range(LANES):
                h[n, c] = initial[row, first + c, n] if c < width else 0
        for start in range(0, end, chunk):
            steps = min(chunk, end - start)
            read_steps(u, row, first, width, start, steps, end, reverse, u_tile)
            read_steps(delta, row, first, width, start, steps, end, reverse, raw)
            prepare_steps(raw, u_tile, offset, delta_softplus, steps, raw, step, x)
            read_states(B, row, group, start, steps, end, reverse, B_tile)
            read_states(C, row, group, start, steps, end, reverse, C_tile)
            for at in range(0, steps * LANES, LANES):
                store(y, at, skip * load(u_tile, at))
            for n in range(states):
                write_row(chunks, ((row * chunks.shape[1] + start // chunk) * states + n) * channels + first, width, h, n)
                entry, rate = load(h, n * LANES), load(rates, n * LANES)
                if window > 1:
                    look_ahead(step, rate, x, B_tile[n], C_tile[n], steps, window, zero, a, y)
                    store(h, n * LANES, scan_state_with(a, x, B_tile[n], C_tile[n], steps, entry, y))
                else:
                    store(h, n * LANES, scan_state(step, rate, x, B_tile[n], C_tile[n], steps, entry, y))
            if gated:
                read_steps(z, row, first, width, start, steps, end, reverse, z_tile)
                gate_steps(y, z_tile, steps)
            write_steps(out, row, first, width, start, steps, end, reverse, y)
        clear_steps(out, row, first, width, end)
        for n in range(states):
            for c in range(width):
                last[row, first + c, n] = h[n, c]
