"""Few long sequences: the states that enter segments scanned in parallel.

Every segment is scanned from state 0 first; a short scan over the segments' ends then gives what enters each of them.
In the backward pass the same two kernels give p, what leaves the segment on the right.
"""
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl
from torch import Tensor

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
)

SIZES = ["length", "channels", "groups", "states", "run", "segment", "per_run", "segments", "tiles"]


@triton.jit(do_not_specialize=SIZES)
def segment_kernel(
    p_delta, p_A, p_bias, p_values, p_weights, p_z, p_lengths, p_ends, p_steps,
    length, channels, groups, states, run, segment, per_run, segments, tiles,
    GRADIENT: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BACKWARDS: tl.constexpr, BT: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Where the scan of a segment from state 0 ends, and the segment's sum of step sizes.

    values and weights are u and B; for the GRADIENT, which is scanned against the order, the gradient of out and C.
    """
    i_b, i_s, i_d = locate_program(segments, tiles)
    low, size = locate_run(p_lengths, i_b, i_s // per_run, length, run, REVERSE)
    i_g, o_c, m_c = locate_channels(i_d, channels, groups, tiles, BD)
    o_a, m_a = locate_states(o_c, m_c, states, channels, BN)
    o_x, o_w = locate_inside(i_g, o_c, channels, groups, states, BACKWARDS, BT, BN)
    b_A, b_bias = tl.load(p_A + o_a, mask=m_a, other=0), load_channels(p_bias, o_c, m_c, ACC)
    b_end, b_sum = tl.zeros_like(b_A), tl.zeros_like(b_bias)
    start = i_s % per_run * segment
    stop = tl.minimum(start + segment, size)
    left = tl.cdiv(tl.maximum(stop - start, 0), BT)
    place = start + (left - 1) * BT if GRADIENT else start
    while left > 0:
        i_t = locate_row(i_b, length, low, size, place, BACKWARDS)
        i_x = i_t * channels
        m_x, m_w = mask_tile(place, stop, states, m_c, BT, BN)
        _, b_step = load_delta(p_delta + i_x, o_x, m_x, b_bias, SOFTPLUS, ACC)  # (BT, 1, BD)
        b_value = load_steps(p_values + i_x, o_x, m_x, ACC)
        if p_z is not None:
            b_z = load_steps(p_z + i_x, o_x, m_x, ACC)
            b_value *= b_z * tl.sigmoid(b_z)
        if not GRADIENT:
            b_value *= b_step
        b_weight = load_weights(p_weights + i_t * groups * states, o_w, m_w)  # (BT, BN, 1)
        for i in tl.static_range(BT):
            INDEX = BT - 1 - i if GRADIENT else i
            b_a = tl.exp2(pick_step(b_step, INDEX) * b_A)  # (BN, BD)
            b_v = pick_step(b_value, INDEX) * pick_step(b_weight, INDEX)
            b_end = b_a * (b_end + b_v) if GRADIENT else b_a * b_end + b_v
        b_sum += tl.sum(b_step, axis=0)
        place += -BT if GRADIENT else BT
        left -= 1
    i_row = i_b * segments + i_s
    tl.store(p_ends + i_row * states * channels + o_a, b_end, mask=m_a)
    tl.store(p_steps + i_row * channels + o_c[None, :], b_sum, mask=m_c[None, :])


@triton.jit(do_not_specialize=["channels", "groups", "states", "per_run", "runs", "tiles"])
def carry_kernel(
    p_A, p_first, p_ends, p_steps, channels, groups, states, per_run, runs, tiles,
    GRADIENT: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Replaces the ends of a run's segments by what enters them; `first` (batch, states, channels) enters the run."""
    i_b, i_r, i_d = locate_program(runs, tiles)
    _, o_c, m_c = locate_channels(i_d, channels, groups, tiles, BD)
    o_a, m_a = locate_states(o_c, m_c, states, channels, BN)
    b_A = tl.load(p_A + o_a, mask=m_a, other=0)
    b_h = load_states(p_first, i_b, o_a, m_a, states, channels, ACC)
    i_row = (i_b * runs + i_r) * per_run + (per_run - 1 if GRADIENT else 0)
    left = per_run
    while left > 0:
        b_end = load_states(p_ends, i_row, o_a, m_a, states, channels, ACC)
        b_step = tl.load(p_steps + i_row * channels + o_c, mask=m_c, other=0)
        tl.store(p_ends + i_row * states * channels + o_a, b_h, mask=m_a)
        b_h = tl.exp2(b_step[None, :] * b_A) * b_h + b_end
        i_row += -1 if GRADIENT else 1
        left -= 1


def enter_segments(
    problem: Problem, cut: Cut, first: Tensor | None, values: Tensor, weights: Tensor, gradient: bool
) -> Tensor | None:
    """What enters every segment of a cut, (batch, segments, state, channels); None for 0.

    Args:
        first: what enters the runs, (batch, state, channels); None for 0.
        values, weights: u and B; for the gradient, which enters from the other end, the gradient of out and C.
    """
    if cut.per_run == 1:
        return None if first is None else first.unsqueeze(1)
    p, segments = problem, cut.segments
    ends, steps = p.empty(p.batch, segments, p.states, p.channels), p.empty(p.batch, segments, p.channels)
    constants = {"GRADIENT": gradient, **p.constants(cut, gradient)}
    segment_kernel[(p.batch * segments * p.tiles,)](
        p.delta, p.A, p.bias, values, weights, p.z if gradient else None, p.lengths, ends, steps,
        p.length, p.channels, p.groups, p.states, cut.run, cut.segment, cut.per_run, segments, p.tiles, **constants,
    )  # fmt: skip
    carry_kernel[(p.batch * cut.runs * p.tiles,)](
        p.A, first, ends, steps, p.channels, p.groups, p.states, cut.per_run, cut.runs, p.tiles,
        **{name: constants[name] for name in ("GRADIENT", "BN", "BD", "ACC")}, num_warps=1,
    )  # fmt: skip
    return ends
