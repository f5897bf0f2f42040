"""Forward pass of the Triton scan: a program takes a channel tile through one segment, tile after tile."""
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
    sum_states,
)

SIZES = ["length", "channels", "groups", "states", "run", "run_chunks", "segment", "per_run", "segments", "tiles"]


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_u, p_delta, p_A, p_B, p_C, p_D, p_z, p_bias, p_lengths, p_entry, p_local, p_out, p_last, p_chunks,
    length, channels, groups, states, run, run_chunks, segment, per_run, segments, tiles,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BACKWARDS: tl.constexpr, LOCAL: tl.constexpr, WINDOW: tl.constexpr,
    BORDER: tl.constexpr, CHUNK: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    i_b, i_s, i_d = locate_program(segments, tiles)
    low, size = locate_run(p_lengths, i_b, i_s // per_run, length, run, REVERSE)
    i_g, o_c, m_c = locate_channels(i_d, channels, groups, tiles, BD)
    o_a, m_a = locate_states(o_c, m_c, states, channels, BN)
    o_x, o_w = locate_inside(i_g, o_c, channels, groups, states, BACKWARDS, BT, BN)
    b_A = tl.load(p_A + o_a, mask=m_a, other=0)
    b_D, b_bias = load_channels(p_D, o_c, m_c, ACC), load_channels(p_bias, o_c, m_c, ACC)
    b_h = load_states(p_entry, i_b * segments + i_s, o_a, m_a, states, channels, ACC)
    b_zero = tl.zeros_like(b_h)
    chunk = i_s % per_run * segment
    stop = tl.minimum(chunk + segment, size)
    i_k = (i_b * (segments // per_run) + i_s // per_run) * run_chunks + chunk // CHUNK
    while chunk < stop:
        tl.store(p_chunks + i_k * states * channels + o_a, b_h, mask=m_a)
        chunk_stop = tl.minimum(chunk + CHUNK, stop)
        place = chunk
        while place < chunk_stop:
            i_t = locate_row(i_b, length, low, size, place, BACKWARDS)
            i_x, i_w = i_t * channels, i_t * groups * states
            m_x, m_w = mask_tile(place, chunk_stop, states, m_c, BT, BN)
            b_u = load_steps(p_u + i_x, o_x, m_x, ACC)  # (BT, 1, BD)
            _, b_step = load_delta(p_delta + i_x, o_x, m_x, b_bias, SOFTPLUS, ACC)
            b_B, b_C = load_weights(p_B + i_w, o_w, m_w), load_weights(p_C + i_w, o_w, m_w)  # (BT, BN, 1)
            b_x, b_y = b_step * b_u, b_D[None, :, :] * b_u
            if WINDOW > 1:
                b_k = b_zero
                tile_end = tl.minimum(place - chunk + BT, CHUNK)
                window_end = tl.cdiv(tile_end, WINDOW) * WINDOW
                later = chunk + (window_end - 1) // BT * BT
                while later > place:
                    b_k = look_back(
                        p_u, p_delta, p_B, b_A, b_bias, b_k, i_b, length, low, size, chunk, later, chunk_stop, o_x, o_w,
                        m_c, channels, groups, states, SOFTPLUS, BACKWARDS, WINDOW, BORDER, BT, BN, ACC,
                    )  # fmt: skip
                    later -= BT
                for i in tl.static_range(BT - 1, -1, -1):
                    if (i + 1) % BORDER == 0:
                        b_k = tl.where((place - chunk + i + 1) % WINDOW == 0, b_zero, b_k)
                    b_look = tl.exp2(pick_step(b_step, i) * b_A) * b_k  # (BN, BD)
                    b_k = b_look + pick_step(b_x, i) * pick_step(b_B, i)
                    b_y = put_step(b_y, i, pick_step(b_y, i) + sum_states(b_look * pick_step(b_C, i)))
                b_B, b_C = load_weights(p_B + i_w, o_w, m_w, True), load_weights(p_C + i_w, o_w, m_w, True)
            for i in tl.static_range(BT):
                b_decayed = tl.exp2(pick_step(b_step, i) * b_A) * b_h
                b_h = b_decayed + pick_step(b_x, i) * pick_step(b_B, i)
                b_read = b_decayed if LOCAL else b_h
                b_y = put_step(b_y, i, pick_step(b_y, i) + sum_states(b_read * pick_step(b_C, i)))
            if p_local is not None:
                b_y += load_steps(p_local + i_x, o_x, m_x, ACC)
            if p_z is not None:
                b_z = load_steps(p_z + i_x, o_x, m_x, ACC)
                b_y *= b_z * tl.sigmoid(b_z)
            tl.store(p_out + i_x + o_x, tl.reshape(b_y, (BT, BD)), mask=m_x)
            place += BT
        i_k += 1
        chunk += CHUNK
    if not LOCAL and i_s == segments - 1:
        tl.store(p_last + i_b * states * channels + o_a, b_h, mask=m_a)
        i_k, i_stop = i_b * run_chunks + tl.cdiv(size, CHUNK), (i_b + 1) * run_chunks
        while i_k < i_stop:  # chunks past the end: an operator's outputs are defined everywhere
            tl.store(p_chunks + i_k * states * channels + o_a, b_zero, mask=m_a)
            i_k += 1


@triton.jit
def look_back(
    p_u, p_delta, p_B, b_A, b_bias, b_k, i_b, length, low, size, chunk, place, chunk_stop, o_x, o_w,
    m_c, channels, groups, states, SOFTPLUS: tl.constexpr, BACKWARDS: tl.constexpr, WINDOW: tl.constexpr,
    BORDER: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The local state at the start of a tile, from b_k at its end."""
    i_t = locate_row(i_b, length, low, size, place, BACKWARDS)
    i_x = i_t * channels
    m_x, m_w = mask_tile(place, chunk_stop, states, m_c, BT, BN)
    _, b_step = load_delta(p_delta + i_x, o_x, m_x, b_bias, SOFTPLUS, ACC)
    b_x = b_step * load_steps(p_u + i_x, o_x, m_x, ACC)
    b_B = load_weights(p_B + i_t * groups * states, o_w, m_w)
    for i in tl.static_range(BT - 1, -1, -1):
        if (i + 1) % BORDER == 0:
            b_k = tl.where((place - chunk + i + 1) % WINDOW == 0, tl.zeros_like(b_k), b_k)
        b_k = tl.exp2(pick_step(b_step, i) * b_A) * b_k + pick_step(b_x, i) * pick_step(b_B, i)
    return b_k


def launch_forward(
    problem: Problem, cut: Cut, entry: Tensor | None, local: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """out, last state and chunk states, states as (…, state, channels).

    In the local pass out is what later steps contribute before D and gate, and there is no last state; the main pass
    adds it as `local`.

    Args:
        entry: what enters every segment, (batch, segments, state, channels); None for 0.
    """
    p, channels, states = problem, problem.channels, problem.states
    out = p.by_step(*p.u.shape, dtype=p.dtype if cut.local else p.u.dtype)
    last = p.empty(0 if cut.local else p.batch, states, channels)
    run_chunks = saved_chunks(cut.run, p.chunk)
    chunks = p.empty(p.batch, cut.runs * run_chunks, states, channels)
    D, z = (None, None) if cut.local else (p.D, p.z)
    constants = p.constants(cut, gradient=False)
    forward_kernel[(p.batch * cut.segments * p.tiles,)](
        p.u, p.delta, p.A, p.B, p.C, D, z, p.bias, p.lengths, entry, local, out, last, chunks,
        p.length, channels, p.groups, states, cut.run, run_chunks, cut.segment, cut.per_run, cut.segments, p.tiles,
        **p.window_constants(cut, constants["BT"]), **constants,
    )  # fmt: skip
    return out, last, chunks
