"""Backward pass of the Triton scan: the closed form of LBMamba's gradients (docs/kernels/selective_scan.md).

With g = C · (gradient of out before the gate), per channel and state:

    p_t   = a_t lambda_t,  lambda_t = g_t + p_{t+1}     over the whole run, against the order of the scan
    r_t   = a_t mu_t,      mu_t     = g_t + r_{t-1}     inside t's window, in order
    tau_t = lambda_t + r_{t-1}                          gradient of b_t
    q_t   = lambda_t a_t h_{t-1} + mu_t l_t             gradient of log a_t

A tile is gone through twice: in order for h and r, which are kept, then against the order for p and the gradients.
"""
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl
from torch import Tensor

from seqattn.kernels.selective_scan.operator import saved_chunks
from seqattn.kernels.selective_scan.triton_problem import Cut, Problem
from seqattn.kernels.selective_scan.triton_tiles import (
    load_channels,
    load_delta,
    load_states,
    load_steps,
    load_weights,
    locate_channels,
    locate_inside,
    locate_program,
    locate_row,
    locate_run,
    locate_states,
    mask_tile,
    pick_step,
    put_step,
    sum_channels,
    sum_states,
)

SIZES = [
    "batch",
    "length",
    "channels",
    "groups",
    "states",
    "run",
    "run_chunks",
    "segment",
    "per_run",
    "segments",
    "tiles",
    "part",
]


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    p_u, p_delta, p_A, p_B, p_C, p_D, p_z, p_bias, p_lengths, p_carry, p_local, p_chunks, p_grad_out, p_local_b,
    p_local_step, p_grad_u, p_grad_delta, p_grad_A, p_grad_B, p_grad_C, p_grad_D, p_grad_z, p_grad_bias, p_grad_initial,
    batch, length, channels, groups, states, run, run_chunks, segment, per_run, segments, tiles, part,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BACKWARDS: tl.constexpr, LOCAL: tl.constexpr, WINDOW: tl.constexpr,
    BORDER: tl.constexpr, CHUNK: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    i_b, i_s, i_d = locate_program(segments, tiles)
    low, size = locate_run(p_lengths, i_b, i_s // per_run, length, run, REVERSE)
    i_g, o_c, m_c = locate_channels(i_d, channels, groups, tiles, BD)
    o_a, m_a = locate_states(o_c, m_c, states, channels, BN)
    o_x, o_w = locate_inside(i_g, o_c, channels, groups, states, BACKWARDS, BT, BN)
    o_n = tl.arange(0, BN)
    b_A = tl.load(p_A + o_a, mask=m_a, other=0)
    b_D, b_bias = load_channels(p_D, o_c, m_c, ACC), load_channels(p_bias, o_c, m_c, ACC)
    b_p = load_states(p_carry, i_b * segments + i_s, o_a, m_a, states, channels, ACC)
    b_zero = tl.zeros_like(b_p)
    b_k, b_grad_A, b_grad_bias, b_grad_D = b_zero, b_zero, tl.zeros_like(b_bias), tl.zeros_like(b_bias)
    # first row of this tile's part of grad_B and grad_C
    i_part = (part + i_d % (tiles // groups)).to(tl.int64) * batch * length
    start = i_s % per_run * segment
    stop = tl.minimum(start + segment, size)
    chunk = start + tl.cdiv(tl.maximum(stop - start, 0), CHUNK) * CHUNK
    i_k = (i_b * (segments // per_run) + i_s // per_run) * run_chunks + chunk // CHUNK
    while chunk > start:
        chunk -= CHUNK
        i_k -= 1
        b_entry = load_states(p_chunks, i_k, o_a, m_a, states, channels, ACC)
        chunk_stop = tl.minimum(chunk + CHUNK, stop)
        place = chunk + tl.cdiv(chunk_stop - chunk, BT) * BT
        while place > chunk:
            place -= BT
            b_h, b_r = b_entry, b_zero
            earlier = chunk
            while earlier < place:
                b_h, b_r = replay(
                    p_u, p_delta, p_B, p_C, p_z, p_grad_out, b_A, b_bias, b_h, b_r, i_b, length, low, size, chunk,
                    earlier, chunk_stop, o_x, o_w, m_c, channels, groups, states, SOFTPLUS, BACKWARDS, WINDOW, BORDER,
                    BT, BN, ACC,
                )  # fmt: skip
                earlier += BT
            i_t = locate_row(i_b, length, low, size, place, BACKWARDS)
            i_x, i_w = i_t * channels, i_t * groups * states
            m_x, m_w = mask_tile(place, chunk_stop, states, m_c, BT, BN)
            b_u = load_steps(p_u + i_x, o_x, m_x, ACC)  # (BT, 1, BD)
            b_raw, b_step = load_delta(p_delta + i_x, o_x, m_x, b_bias, SOFTPLUS, ACC)
            b_g = load_steps(p_grad_out + i_x, o_x, m_x, ACC)
            if p_z is not None:
                b_z = load_steps(p_z + i_x, o_x, m_x, ACC)
                b_sigmoid = tl.sigmoid(b_z)
                b_slope = b_g * b_sigmoid * (1.0 + b_z * (1.0 - b_sigmoid))
                b_g *= b_z * b_sigmoid
            b_B, b_C = load_weights(p_B + i_w, o_w, m_w), load_weights(p_C + i_w, o_w, m_w)  # (BT, BN, 1)
            b_x, b_y = b_step * b_u, b_D[None, :, :] * b_u
            b_h_before, b_r_before = tl.zeros([BT, BN, BD], ACC), tl.zeros([BT, BN, BD], ACC)
            for i in tl.static_range(BT):
                b_a = tl.exp2(pick_step(b_step, i) * b_A)  # (BN, BD)
                b_h_before = put_step(b_h_before, i, b_h)
                b_h = b_a * b_h + pick_step(b_x, i) * pick_step(b_B, i)
                if WINDOW > 1:
                    if i % BORDER == 0:
                        b_r = tl.where((place - chunk + i) % WINDOW == 0, b_zero, b_r)
                    b_r_before = put_step(b_r_before, i, b_r)
                    b_r = b_a * (b_r + pick_step(b_g, i) * pick_step(b_C, i))
            b_B, b_C = load_weights(p_B + i_w, o_w, m_w, True), load_weights(p_C + i_w, o_w, m_w, True)
            b_into_b, b_into_step = tl.zeros_like(b_x), tl.zeros_like(b_x)  # Σ_n B tau, Σ_n A q
            for i in tl.static_range(BT - 1, -1, -1):
                b_a = tl.exp2(pick_step(b_step, i) * b_A)
                b_decayed = b_a * pick_step(b_h_before, i)
                b_b = pick_step(b_x, i) * pick_step(b_B, i)
                b_read = pick_step(b_g, i) * pick_step(b_C, i)
                b_lambda = b_read + b_p
                b_q = b_lambda * b_decayed
                # the local pass leaves out a step's own input
                b_tau, b_states = (b_p, b_decayed) if LOCAL else (b_lambda, b_decayed + b_b)
                b_p = b_a * b_lambda
                if WINDOW > 1:
                    if (i + 1) % BORDER == 0:
                        b_k = tl.where((place - chunk + i + 1) % WINDOW == 0, b_zero, b_k)
                    b_look, b_r = b_a * b_k, pick_step(b_r_before, i)
                    b_k = b_look + b_b
                    b_tau += b_r
                    b_q += (b_read + b_r) * b_look
                    b_states += b_look
                b_grad_A += b_q * pick_step(b_step, i)
                b_into_b = put_step(b_into_b, i, sum_states(b_tau * pick_step(b_B, i)))
                b_into_step = put_step(b_into_step, i, sum_states(b_q * b_A))
                b_y = put_step(b_y, i, pick_step(b_y, i) + sum_states(b_states * pick_step(b_C, i)))
                i_row = i_part + locate_row(i_b, length, low, size, place + i, BACKWARDS)
                o_row, m_row = (i_row * groups + i_g) * states + o_n, (o_n < states) & (place + i < chunk_stop)
                tl.store(p_grad_B + o_row, sum_channels(b_tau * pick_step(b_x, i)), mask=m_row)
                tl.store(p_grad_C + o_row, sum_channels(b_states * pick_step(b_g, i)), mask=m_row)
            b_into_step *= 0.6931471805599453  # A holds log2(e)
            if LOCAL:
                tl.store(p_grad_u + i_x + o_x, tl.reshape(b_into_b, (BT, BD)), mask=m_x)
                tl.store(p_grad_delta + i_x + o_x, tl.reshape(b_into_step, (BT, BD)), mask=m_x)
            else:
                if p_z is not None:
                    if p_local is not None:
                        b_y += load_steps(p_local + i_x, o_x, m_x, ACC)
                    tl.store(p_grad_z + i_x + o_x, tl.reshape(b_slope * b_y, (BT, BD)), mask=m_x)
                if p_local is not None:
                    b_into_b += load_steps(p_local_b + i_x, o_x, m_x, ACC)
                    b_into_step += load_steps(p_local_step + i_x, o_x, m_x, ACC)
                b_grad_u = b_D[None, :, :] * b_g + b_step * b_into_b
                b_grad_delta = b_into_step + b_u * b_into_b
                if SOFTPLUS:
                    b_grad_delta *= tl.where(b_raw > 20, 1.0, tl.sigmoid(b_raw))
                b_grad_delta = tl.where(m_x[:, None, :], b_grad_delta, 0.0)
                tl.store(p_grad_u + i_x + o_x, tl.reshape(b_grad_u, (BT, BD)), mask=m_x)
                tl.store(p_grad_delta + i_x + o_x, tl.reshape(b_grad_delta, (BT, BD)), mask=m_x)
                b_grad_bias += tl.sum(b_grad_delta, axis=0)
                b_grad_D += tl.sum(b_g * b_u, axis=0)
    i_row = i_b * segments + i_s
    tl.store(p_grad_A + i_row * states * channels + o_a, b_grad_A, mask=m_a)
    if not LOCAL:
        tl.store(p_grad_bias + i_row * channels + o_c[None, :], b_grad_bias, mask=m_c[None, :])
        tl.store(p_grad_D + i_row * channels + o_c[None, :], b_grad_D, mask=m_c[None, :])
        if i_s == 0:
            tl.store(p_grad_initial + i_b * states * channels + o_a, b_p, mask=m_a)


@triton.jit
def replay(
    p_u, p_delta, p_B, p_C, p_z, p_grad_out, b_A, b_bias, b_h, b_r, i_b, length, low, size, chunk, place, chunk_stop,
    o_x, o_w, m_c, channels, groups, states, SOFTPLUS: tl.constexpr, BACKWARDS: tl.constexpr, WINDOW: tl.constexpr,
    BORDER: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """h and r after a tile, from h and r before it."""
    i_t = locate_row(i_b, length, low, size, place, BACKWARDS)
    i_x, i_w = i_t * channels, i_t * groups * states
    m_x, m_w = mask_tile(place, chunk_stop, states, m_c, BT, BN)
    _, b_step = load_delta(p_delta + i_x, o_x, m_x, b_bias, SOFTPLUS, ACC)
    b_x = b_step * load_steps(p_u + i_x, o_x, m_x, ACC)
    b_B = load_weights(p_B + i_w, o_w, m_w)
    if WINDOW > 1:
        b_g, b_C = load_steps(p_grad_out + i_x, o_x, m_x, ACC), load_weights(p_C + i_w, o_w, m_w)
        if p_z is not None:
            b_z = load_steps(p_z + i_x, o_x, m_x, ACC)
            b_g *= b_z * tl.sigmoid(b_z)
    for i in tl.static_range(BT):
        b_a = tl.exp2(pick_step(b_step, i) * b_A)
        b_h = b_a * b_h + pick_step(b_x, i) * pick_step(b_B, i)
        if WINDOW > 1:
            if i % BORDER == 0:
                b_r = tl.where((place - chunk + i) % WINDOW == 0, tl.zeros_like(b_r), b_r)
            b_r = b_a * (b_r + pick_step(b_g, i) * pick_step(b_C, i))
    return b_h, b_r


class Gradients:
    """What the backward kernel writes, A, D and bias per segment, B and C per channel tile: still to be summed."""

    def __init__(self, problem: Problem, cut: Cut, grad_B: Tensor, grad_C: Tensor, part: int) -> None:
        p, dtype, rows = problem, problem.dtype if cut.local else problem.u.dtype, problem.batch * cut.segments
        self.u, self.delta = p.by_step(*p.u.shape, dtype=dtype), p.by_step(*p.u.shape, dtype=dtype)
        self.z = None if p.z is None or cut.local else p.by_step(*p.u.shape, dtype=dtype)
        self.A = p.empty(rows, p.states, p.channels)
        self.D, self.bias = p.empty(rows, p.channels), p.empty(rows, p.channels)
        self.initial = p.empty(p.batch, p.states, p.channels)
        self.B, self.C, self.part = grad_B, grad_C, part


def launch_backward(
    problem: Problem, cut: Cut, carry: Tensor | None, chunks: Tensor, grad_out: Tensor, gradients: Gradients,
    local: Tensor | None, local_gradients: Gradients | None,
) -> None:  # fmt: skip
    """Fill `gradients`.

    Args:
        carry: p as it enters every segment from its end, (batch, segments, state, channels); None for 0.
        chunks, local: what the forward passes made.
        local_gradients: of the local pass, if there was one; its u and delta hold Σ_n B tau and Σ_n A q.
    """
    p, grads, before = problem, gradients, local_gradients
    constants, run_chunks = p.constants(cut, gradient=True), saved_chunks(cut.run, p.chunk)
    backward_kernel[(p.batch * cut.segments * p.tiles,)](
        p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.lengths, carry, local, chunks, grad_out,
        before and before.u, before and before.delta, grads.u, grads.delta, grads.A, grads.B, grads.C, grads.D,
        grads.z, grads.bias, grads.initial,
        p.batch, p.length, p.channels, p.groups, p.states, cut.run, run_chunks, cut.segment, cut.per_run, cut.segments,
        p.tiles, grads.part, **p.window_constants(cut, constants["BT"]), **constants,
    )  # fmt: skip
