"""Causal products in Triton: tile by tile in the order of the scan, with the sum over earlier tokens on the chip.

`own` tokens read `other` ones up to themselves: queries read keys; with REVERSE, for the gradients of keys, keys read
queries from the end. ν rises in the order of the scan and is what the running maxima make of it: another token counts
e^(ν_other - ν_own). A sequence is cut into parts that run side by side from the sums that enter them; features into
blocks of BM, whose results are added up afterwards.
"""
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from seqattn.kernels.wersa.triton_features import (
    before_map,
    features_of,
    load_proj,
    load_ref,
    load_sums,
    store_gradient,
    store_rows,
)
from seqattn.kernels.wersa.triton_filter import load_tile, multiply, multiply_sums


@triton.jit
def decay_within(own, other, m_own, m_other, BT: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr):
    """(own token, other token): e^(ν_other - ν_own) for tokens that are read, else 0."""
    o_i = tl.arange(0, BT)
    read = o_i[:, None] <= o_i[None, :] if REVERSE else o_i[:, None] >= o_i[None, :]
    read = read & m_own[:, None] & m_other[None, :]
    return tl.where(read, tl.exp(tl.where(read, other[None, :] - own[:, None], 0.0)), 0.0).to(ACC)


@triton.jit
def causal_kernel(
    p_own, p_own_proj, p_own_ref, p_own_rows, p_own_last, p_other, p_other_proj, p_other_ref, p_rows, p_last, p_nu,
    p_entry, p_entry_nu, p_ends, p_out, p_out_last, p_out_proj, heads, length, dim, features, values, part, p_b,
    log_count, GRADIENT: tl.constexpr, PROJ: tl.constexpr, REVERSE: tl.constexpr, EXP: tl.constexpr,
    KIND: tl.constexpr, ACC: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What own tokens read, value rows and last numbers; GRADIENT: the gradients of own tokens from what they gave.

    entry (parts, rows, features, values + 1): sums that enter each part, relative to entry_nu (parts, rows).
    out (blocks of features, rows, length, …).
    """
    i_row, i_m, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows_count = tl.num_programs(0)
    end = tl.load(p_ends + i_row // heads).to(tl.int32)
    own_proj = load_proj(p_own_proj, i_m, dim, features, BD, BM)
    other_proj = load_proj(p_other_proj, i_m, dim, features, BD, BM)
    i_entry = i_p.to(tl.int64) * rows_count + i_row
    state, total = load_sums(p_entry, i_entry, i_m, features, values, ACC, BM, BV)
    nu = tl.load(p_entry_nu + i_entry).to(ACC)
    proj_grad = tl.zeros((BD, BM), ACC)
    i_out = i_m.to(tl.int64) * rows_count + i_row
    tiles, tile = tl.cdiv(tl.minimum(part, length - i_p * part), BT), 0
    while tile < tiles:
        o_t = i_p * part + (tiles - 1 - tile if REVERSE else tile) * BT + tl.arange(0, BT)
        m_t = o_t < end
        own = load_tile(p_own, i_row, o_t, length, dim, BD)
        other = load_tile(p_other, i_row, o_t, length, dim, BD)
        own_ref = load_ref(p_own_ref, i_row, o_t, m_t, length, EXP, ACC)
        other_ref = load_ref(p_other_ref, i_row, o_t, m_t, length, EXP, ACC)
        phi = features_of(own, own_proj, own_ref, m_t, i_m, features, p_b, log_count, EXP, REVERSE, KIND, ACC, BM)
        read = features_of(
            other, other_proj, other_ref, m_t, i_m, features, p_b, log_count, EXP, not REVERSE, KIND, ACC, BM
        )
        rows = load_tile(p_rows, i_row, o_t, length, values, BV).to(KIND)
        last = tl.load(p_last + i_row * length + o_t, mask=m_t, other=0).to(ACC)
        tile_nu = load_ref(p_nu, i_row, o_t, m_t, length, EXP, ACC)
        within = decay_within(tile_nu, tile_nu, m_t, m_t, BT, REVERSE, ACC)
        entering = tl.exp(tl.where(m_t, nu - tile_nu, 0.0))  # of the sums so far, at each own token
        if GRADIENT:
            own_rows = load_tile(p_own_rows, i_row, o_t, length, values, BV).to(KIND)
            own_last = tl.load(p_own_last + i_row * length + o_t, mask=m_t, other=0).to(ACC)
            weights = multiply(own_rows, tl.trans(rows), ACC)
            weights = (weights + own_last[:, None] * last[None, :]) * within
            of_phi = multiply_sums(own_rows, tl.trans(state), KIND, ACC)
            of_phi = (of_phi + own_last[:, None] * total[None, :]) * entering[:, None]
            of_phi += multiply(weights.to(KIND), read.to(KIND), ACC)
            before = before_map(phi, of_phi, EXP)
            grad = multiply(before.to(KIND), tl.trans(own_proj).to(KIND), ACC)
            norms = tl.sum(before, 1)
            store_gradient(p_out, p_out_last, i_out, o_t, own, grad, norms, length, dim, p_b, EXP, REVERSE, ACC, BD)
            if PROJ:
                proj_grad += multiply(tl.trans(own).to(KIND), before.to(KIND), ACC)
        else:
            weights = multiply(phi.to(KIND), tl.trans(read).to(KIND), ACC) * within
            weights = weights.to(KIND).to(ACC)  # alike for values and for their sum
            out = multiply_sums(phi.to(KIND), state, KIND, ACC) * entering[:, None]
            out += multiply(weights.to(KIND), rows, ACC)
            out_last = tl.sum(phi * total[None, :], 1) * entering + tl.sum(weights * last[None, :], 1)
            store_rows(p_out, p_out_last, i_out, o_t, out, out_last, length, values, BV)
        if EXP:  # the sums move to ν at the tile's last token
            leaving = tl.max(tl.where(m_t, tile_nu, float("-inf")), 0)
            leaving = tl.where(leaving == float("-inf"), nu, leaving)
            moved = tl.exp(nu - leaving)
            state, total, nu = state * moved, total * moved, leaving
            read = (read * tl.exp(tl.where(m_t, tile_nu - leaving, 0.0))[:, None]).to(KIND).to(ACC)
        state += multiply(tl.trans(read).to(KIND), rows, ACC)
        total += tl.sum(read * last[:, None], 0)
        tile += 1
    if PROJ:
        o_d, o_m = tl.arange(0, BD), i_m * BM + tl.arange(0, BM)
        mask = (o_d < dim)[:, None] & (o_m < features)[None, :]
        tl.store(p_out_proj + (i_entry * dim + o_d[:, None]) * features + o_m[None, :], proj_grad, mask=mask)
