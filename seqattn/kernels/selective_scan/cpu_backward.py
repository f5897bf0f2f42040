"""Backward pass of the CPU scan: the closed form of LBMamba's gradients (docs/kernels/selective_scan.md).

With g = C · (gradient of out before the gate), per channel and state:

    lambda_t = g_t + a_{t+1} lambda_{t+1}      over the whole sequence, against the order of the scan
    mu_t     = g_t + a_{t-1} mu_{t-1}          inside t's window, in order
    tau_t    = lambda_t + a_{t-1} mu_{t-1}     gradient of b_t
    q_t      = lambda_t a_t h_{t-1} + mu_t l_t gradient of log a_t
"""

from typing import Any

import numpy as np

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, broadcast, exp2, lane_sum, load, sigmoid, store
from seqattn.kernels.selective_scan.cpu_forward import prepare_steps
from seqattn.kernels.selective_scan.cpu_tiles import (
    block_channels,
    clear_steps,
    count_blocks,
    read_row,
    read_states,
    read_steps,
    step_of,
    write_row,
    write_steps,
)


@jit
def replay(step: Any, rate: Any, x: Any, B: Any, C: Any, steps: int, h: Any, a: Any, ah: Any, y: Any) -> None:
    """One state over a chunk again: keeps a and a_t h_{t-1}; y += C h."""
    for s in range(steps):
        at = s * LANES
        transition = exp2(load(step, at) * rate)
        decayed = transition * h
        h = decayed + load(x, at) * broadcast(B[s])
        store(a, at, transition)
        store(ah, at, decayed)
        store(y, at, load(y, at) + h * broadcast(C[s]))


@jit
def replay_windows(
    step: Any, rate: Any, x: Any, g: Any, B: Any, C: Any, steps: int, window: int, zero: Any, h: Any, a: Any, ah: Any,
    look: Any, entering: Any, y: Any,
) -> None:  # fmt: skip
    """`replay` with windows: also keeps l_t and a_{t-1} mu_{t-1}, and adds C l to y."""
    for start in range(0, steps, window):
        stop = min(start + window, steps)
        k = zero
        for s in range(stop - 1, start - 1, -1):
            at = s * LANES
            transition = exp2(load(step, at) * rate)
            beyond = transition * k
            k = beyond + load(x, at) * broadcast(B[s])
            store(a, at, transition)
            store(look, at, beyond)
        from_left = zero
        for s in range(start, stop):
            at = s * LANES
            transition = load(a, at)
            decayed = transition * h
            h = decayed + load(x, at) * broadcast(B[s])
            store(ah, at, decayed)
            store(entering, at, from_left)
            store(y, at, load(y, at) + (h + load(look, at)) * broadcast(C[s]))
            from_left = transition * (load(g, at) * broadcast(C[s]) + from_left)


@jit
def gradients(
    A: Any, step: Any, x: Any, g: Any, B: Any, C: Any, steps: int, a: Any, ah: Any, carry: Any, rate_sum: Any,
    into_b: Any, into_step: Any, grad_B: Any, grad_C: Any,
) -> Any:  # fmt: skip
    """The sweep against the order: returns a_0 lambda_0 and the sum of step q.

    carry: a_{t+1} lambda_{t+1} from beyond the chunk. Adds Σ_n B tau to into_b and Σ_n A q to into_step; adds the
    block's part of the gradients of B and C to their rows.
    """
    for s in range(steps - 1, -1, -1):
        at = s * LANES
        b, c = broadcast(B[s]), broadcast(C[s])
        g_t, x_t, ah_t = load(g, at), load(x, at), load(ah, at)
        lam = g_t * c + carry
        carry = load(a, at) * lam
        q = lam * ah_t
        rate_sum = rate_sum + load(step, at) * q
        store(into_b, at, load(into_b, at) + b * lam)
        store(into_step, at, load(into_step, at) + A * q)
        grad_B[s] += lane_sum(lam * x_t)
        grad_C[s] += lane_sum(g_t * (ah_t + x_t * b))
    return carry, rate_sum


@jit
def gradients_windows(
    A: Any, step: Any, x: Any, g: Any, B: Any, C: Any, steps: int, a: Any, ah: Any, look: Any, entering: Any,
    carry: Any, rate_sum: Any, into_b: Any, into_step: Any, grad_B: Any, grad_C: Any,
) -> Any:  # fmt: skip
    """`gradients` with windows."""
    for s in range(steps - 1, -1, -1):
        at = s * LANES
        b, c = broadcast(B[s]), broadcast(C[s])
        g_t, x_t, ah_t, look_t, from_left = load(g, at), load(x, at), load(ah, at), load(look, at), load(entering, at)
        read = g_t * c
        lam = read + carry
        carry = load(a, at) * lam
        tau = lam + from_left
        q = lam * ah_t + (read + from_left) * look_t
        rate_sum = rate_sum + load(step, at) * q
        store(into_b, at, load(into_b, at) + b * tau)
        store(into_step, at, load(into_step, at) + A * q)
        grad_B[s] += lane_sum(tau * x_t)
        grad_C[s] += lane_sum(g_t * (ah_t + x_t * b + look_t))
    return carry, rate_sum


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
def finish_steps(
    raw: Any, step: Any, u: Any, g: Any, skip: Any, delta_softplus: bool, steps: int, into_b: Any, into_step: Any,
    bias_sum: Any, skip_sum: Any,
) -> Any:  # fmt: skip
    """into_b becomes the gradient of u, into_step that of delta; returns the sums of the latter and of g u."""
    for at in range(0, steps * LANES, LANES):
        to_b, u_t, g_t = load(into_b, at), load(u, at), load(g, at)
        slope = load(into_step, at) + u_t * to_b
        if delta_softplus:
            slope = slope * sigmoid(load(raw, at))
        bias_sum, skip_sum = bias_sum + slope, skip_sum + g_t * u_t
        store(into_b, at, skip * g_t + load(step, at) * to_b)
        store(into_step, at, slope)
    return bias_sum, skip_sum


@jit
def add_states(tile: Any, array: Any, part: int, row: int, group: int, start: int, steps: int, end: int, reverse: bool, add: bool) -> None:  # noqa: E501
    for s in range(steps):
        t = step_of(start + s, end, reverse)
        for n in range(tile.shape[0]):
            array[part, row, t, group, n] = tile[n, s] + (array[part, row, t, group, n] if add else 0)


@jit
def backward_tasks(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, initial: Any, ends: Any,
    delta_softplus: bool, window: int, reverse: bool, chunk: int, parts: int, grad_out: Any, grad_last: Any, chunks: Any,
    grad_u: Any, grad_delta: Any, grad_A: Any, grad_B: Any, grad_C: Any, grad_D: Any, grad_z: Any, grad_bias: Any,
    grad_initial: Any, task: int, stop: int,
) -> None:  # fmt: skip
    """Tasks `task` … `stop` - 1 of batch · groups · parts; arrays as in `cpu.backward`, A (state, channels) · log2(e)."""
    length, channels, groups, states = u.shape[1], u.shape[2], B.shape[2], B.shape[3]
    blocks, gated, size = count_blocks(channels, groups), z.size > 0, min(chunk, length)
    tiles = np.zeros((14, size, LANES), u.dtype)
    u_tile, raw, step, x, g, y = tiles[0], tiles[1], tiles[2], tiles[3], tiles[4], tiles[5]
    a, ah, look, entering = tiles[6], tiles[7], tiles[8], tiles[9]
    z_tile, gate_slope, into_b, into_step = tiles[10], tiles[11], tiles[12], tiles[13]
    constants, sums = np.zeros((3, LANES), u.dtype), np.zeros((2, LANES), u.dtype)
    rates, entry = np.zeros((states, LANES), u.dtype), np.zeros((1, LANES), u.dtype)
    carry, rate_sums = np.zeros((states, LANES), u.dtype), np.zeros((states, LANES), u.dtype)
    B_tile, C_tile = np.zeros((states, size), u.dtype), np.zeros((states, size), u.dtype)
    grad_B_tile, grad_C_tile = np.zeros((states, size), u.dtype), np.zeros((states, size), u.dtype)
    to_A = broadcast(u.dtype.type(np.log(2.0)))
    for index in range(task, stop):
        row, end = index // (groups * parts), ends[index // (groups * parts)]
        own_group, part = index // parts % groups, index % parts
        for t in range(end, length):
            for n in range(states):
                grad_B[part, row, t, own_group, n] = 0
                grad_C[part, row, t, own_group, n] = 0
        first_block = blocks * part // parts
        for block in range(first_block, blocks * (part + 1) // parts):
            group, first, width = block_channels(own_group * blocks + block, channels, groups, blocks)
            read_row(D, first, width, constants, 0)
            read_row(bias, first, width, constants, 1)
            skip, zero = load(constants, 0), load(constants, 2 * LANES)
            bias_sum, skip_sum = zero, zero
            rate_sums[:] = 0
            for n in range(states):
                read_row(A, n * channels + first, width, rates, n)
                for c in range(LANES):
                    carry[n, c] = grad_last[row, first + c, n] if c < width else 0
            for start in range((end - 1) // chunk * chunk, -1, -chunk):
                steps = min(chunk, end - start)
                read_steps(u, row, first, width, start, steps, end, reverse, u_tile)
                read_steps(delta, row, first, width, start, steps, end, reverse, raw)
                read_steps(grad_out, row, first, width, start, steps, end, reverse, g)
                prepare_steps(raw, u_tile, constants[1], delta_softplus, steps, raw, step, x)
                read_states(B, row, group, start, steps, end, reverse, B_tile)
                read_states(C, row, group, start, steps, end, reverse, C_tile)
                if gated:
                    read_steps(z, row, first, width, start, steps, end, reverse, z_tile)
                    gate_gradients(g, z_tile, steps, gate_slope)
                for at in range(0, steps * LANES, LANES):
                    store(y, at, skip * load(u_tile, at))
                    store(into_b, at, zero)
                    store(into_step, at, zero)
                grad_B_tile[:, :steps] = 0
                grad_C_tile[:, :steps] = 0
                for n in range(states):
                    read_row(chunks, ((row * chunks.shape[1] + start // chunk) * states + n) * channels + first, width, entry, 0)
                    at, h, rate = n * LANES, load(entry, 0), load(rates, n * LANES)
                    B_n, C_n, grad_B_n, grad_C_n = B_tile[n], C_tile[n], grad_B_tile[n], grad_C_tile[n]
                    if window > 1:
                        replay_windows(step, rate, x, g, B_n, C_n, steps, window, zero, h, a, ah, look, entering, y)
                        to_left, rate_sum = gradients_windows(
                            rate * to_A, step, x, g, B_n, C_n, steps, a, ah, look, entering, load(carry, at),
                            load(rate_sums, at), into_b, into_step, grad_B_n, grad_C_n,
                        )  # fmt: skip
                    else:
                        replay(step, rate, x, B_n, C_n, steps, h, a, ah, y)
                        to_left, rate_sum = gradients(
                            rate * to_A, step, x, g, B_n, C_n, steps, a, ah, load(carry, at), load(rate_sums, at),
                            into_b, into_step, grad_B_n, grad_C_n,
                        )  # fmt: skip
                    store(carry, at, to_left)
                    store(rate_sums, at, rate_sum)
                bias_sum, skip_sum = finish_steps(
                    raw, step, u_tile, g, skip, delta_softplus, steps, into_b, into_step, bias_sum, skip_sum
                )
                write_steps(grad_u, row, first, width, start, steps, end, reverse, into_b)
                write_steps(grad_delta, row, first, width, start, steps, end, reverse, into_step)
                if gated:
                    for at in range(0, steps * LANES, LANES):
                        store(gate_slope, at, load(gate_slope, at) * load(y, at))
                    write_steps(grad_z, row, first, width, start, steps, end, reverse, gate_slope)
                later = block > first_block
                add_states(grad_B_tile, grad_B, part, row, group, start, steps, end, reverse, later)
                add_states(grad_C_tile, grad_C, part, row, group, start, steps, end, reverse, later)
            clear_steps(grad_u, row, first, width, end)
            clear_steps(grad_delta, row, first, width, end)
            if gated:
                clear_steps(grad_z, row, first, width, end)
            store(sums, 0, bias_sum)
            store(sums, LANES, skip_sum)
            write_row(grad_bias, row * channels + first, width, sums, 0)
            write_row(grad_D, row * channels + first, width, sums, 1)
            for n in range(states):
                write_row(grad_A, (row * states + n) * channels + first, width, rate_sums, n)
                for c in range(width):
                    grad_initial[row, first + c, n] = carry[n, c]
