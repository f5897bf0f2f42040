"""Tiles of time attention in Triton: loads, and what a tile of scores adds to averages and to gradients.

A tile is some queries by some rows of a series, for some of its channels. Its products share one exponential of all
channels where that loses nothing; else its rows enter one by one, each channel relative to its own base.
"""
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

TINY = tl.constexpr(1e-24)
"""Least sum of weights relative to a tile's largest score; what vanishes beside it is below rounding."""
RANGE = tl.constexpr(40.0)
"""Largest distance between the bases of channels that share an exponential in the backward pass."""


@triton.jit
def load_query(p_query, i_head, o_t, queries, heads, dim, BD: tl.constexpr):
    """(queries, dim) of a head, 0 outside."""
    o_d = tl.arange(0, BD)
    mask = (o_t < queries)[:, None] & (o_d < dim)[None, :]
    return tl.load(p_query + (o_t[:, None] * heads + i_head) * dim + o_d[None, :], mask=mask, other=0)


@triton.jit
def load_key(p_key, i_b, i_head, o_l, length, heads, dim, ACC: tl.constexpr, BD: tl.constexpr):
    """(tokens, dim) of a sample and head, 0 outside."""
    o_d = tl.arange(0, BD)
    mask = (o_l < length)[:, None] & (o_d < dim)[None, :]
    place = ((i_b * length + o_l[:, None]) * heads + i_head) * dim + o_d[None, :]
    return tl.load(p_key + place, mask=mask, other=0).to(ACC)


@triton.jit
def load_observations(p_values, p_mask, i_b, o_l, o_c, length, channels, ACC: tl.constexpr):
    """Values and mask (tokens, channels), both 0 where nothing was observed."""
    mask = (o_l < length)[:, None] & (o_c < channels)[None, :]
    place = (i_b * length + o_l[:, None]) * channels + o_c[None, :]
    seen = tl.load(p_mask + place, mask=mask, other=0) != 0
    return tl.load(p_values + place, mask=seen, other=0).to(ACC), seen.to(ACC)


@triton.jit
def load_rows(p_rows, i_b, i_head, o_t, o_c, queries, heads, channels, other):
    """(queries, channels) of a sample and head."""
    mask = (o_t < queries)[:, None] & (o_c < channels)[None, :]
    place = ((i_b * queries + o_t[:, None]) * heads + i_head) * channels + o_c[None, :]
    return tl.load(p_rows + place, mask=mask, other=other)


@triton.jit
def store_rows(p_rows, i_b, i_head, o_t, o_c, queries, heads, channels, rows):
    mask = (o_t < queries)[:, None] & (o_c < channels)[None, :]
    place = ((i_b * queries + o_t[:, None]) * heads + i_head) * channels + o_c[None, :]
    tl.store(p_rows + place, rows, mask=mask)


@triton.jit
def scores_of(query, key, seen, ACC: tl.constexpr):
    """(queries, tokens), -inf for rows without an observation of these channels."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=ACC)
    return tl.where((tl.max(seen, 1) > 0)[None, :], scores, float("-inf"))


@triton.jit
def row_of(scores, values, seen, row, BL: tl.constexpr):
    """Scores (queries,), values and mask (channels,) of one row of a tile."""
    here = tl.arange(0, BL) == row
    score = tl.sum(tl.where(here[None, :], scores, 0.0), 1)
    return score, tl.sum(tl.where(here[:, None], values, 0.0), 0), tl.sum(tl.where(here[:, None], seen, 0.0), 0)


@triton.jit
def merge(total, weight, base, new_total, new_weight, top, found):
    """Sums so far and new ones relative to `top` (queries,), of the channels `found` (channels,), on a common base."""
    known, higher = base > float("-inf"), tl.maximum(base, top[:, None])
    higher = tl.where(found[None, :], higher, base)
    old = tl.where(known, tl.exp(tl.where(known, base - higher, 0.0)), 0.0)
    new = tl.where(found[None, :], tl.exp(tl.where(found[None, :], top[:, None] - higher, 0.0)), 0.0)
    return total * old + new_total * new, weight * old + new_weight * new, higher


@triton.jit
def add_tile(scores, values, seen, total, weight, base, ACC: tl.constexpr, BL: tl.constexpr):
    """The sums with those of one tile."""
    found = tl.max(seen, 0) > 0
    top = tl.max(scores, 1)
    shares = tl.exp(scores - tl.where(top == float("-inf"), 0.0, top)[:, None]).to(ACC)
    tile_total = tl.dot(shares, values, input_precision="ieee", out_dtype=ACC)
    tile_weight = tl.dot(shares, seen, input_precision="ieee", out_dtype=ACC)
    lost = (found[None, :] & (tile_weight < TINY)).to(tl.int32)
    if tl.max(tl.max(lost, 1), 0) == 0:
        total, weight, base = merge(total, weight, base, tile_total, tile_weight, top, found)
    else:
        row = 0
        while row < BL:
            score, value, here = row_of(scores, values, seen, row, BL)
            total, weight, base = merge(total, weight, base, value[None, :], here[None, :], score, here > 0)
            row += 1
    return total, weight, base


@triton.jit
def tile_gradients(
    scores, values, seen, shares, out, base, ACC: tl.constexpr, BT: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr
):
    """Gradients of scores (queries, tokens) and of values (tokens, channels).

    shares (queries, channels): the gradient of out by the sum of weights, which are relative to base.
    """
    known = base > float("-inf")
    top = tl.max(base, 1)
    lowest = tl.min(tl.where(known, base, float("inf")), 1)
    if tl.max(tl.where(top == float("-inf"), 0.0, top - lowest), 0) <= RANGE:
        top = tl.where(top == float("-inf"), 0.0, top)
        weights = tl.exp(scores - top[:, None]).to(ACC)
        left = (shares * tl.exp(tl.where(known, top[:, None] - base, 0.0))).to(ACC)
        of_scores = tl.dot(left, tl.trans(values), input_precision="ieee", out_dtype=ACC)
        of_scores -= tl.dot(left * out, tl.trans(seen), input_precision="ieee", out_dtype=ACC)
        of_scores *= weights
        of_values = tl.dot(tl.trans(weights), left, input_precision="ieee", out_dtype=ACC) * seen
    else:
        of_scores, of_values = tl.zeros((BT, BL), ACC), tl.zeros((BL, BC), ACC)
        o_l, row = tl.arange(0, BL), 0
        while row < BL:
            score, value, here = row_of(scores, values, seen, row, BL)
            counts = known & (here > 0)[None, :]
            weights = tl.exp(tl.where(counts, score[:, None] - base, 0.0)) * tl.where(counts, shares, 0.0)
            of_score = tl.sum(weights * (value[None, :] - out), 1).to(ACC)
            of_scores = tl.where((o_l == row)[None, :], of_score[:, None], of_scores)
            of_values = tl.where((o_l == row)[:, None], tl.sum(weights, 0).to(ACC)[None, :], of_values)
            row += 1
    return of_scores, of_values
