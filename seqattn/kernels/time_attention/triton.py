"""Time attention on a GPU, in Triton: scores stay on the chip, and are computed again in the backward pass.

Every program writes results of its own: nothing depends on the order in which programs run.
"""
# mypy: disallow-untyped-defs=False

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqattn.kernels.time_attention.operator import register_time_attention
from seqattn.kernels.time_attention.triton_tiles import (
    add_tile,
    load_key,
    load_observations,
    load_query,
    load_rows,
    scores_of,
    store_rows,
    tile_gradients,
)

QUERIES, TOKENS, CHANNELS = 32, 32, 64
"""Queries and rows of a tile, and most channels of one."""


@triton.jit
def forward_kernel(
    p_query, p_key, p_values, p_mask, p_out, p_weight, p_base, queries, heads, length, dim, channels,
    ACC: tl.constexpr, BT: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out, and its sums of weights, about 1, relative to base; both 0 and -inf where nothing was observed."""
    i_bh = tl.program_id(0).to(tl.int64)
    i_b, i_head = i_bh // heads, i_bh % heads
    o_t, o_c = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT), tl.program_id(2) * BC + tl.arange(0, BC)
    query = load_query(p_query, i_head, o_t, queries, heads, dim, BD)
    total, weight = tl.zeros((BT, BC), ACC), tl.zeros((BT, BC), ACC)
    base = tl.full((BT, BC), float("-inf"), ACC)
    start = 0
    while start < length:
        o_l = start + tl.arange(0, BL)
        values, seen = load_observations(p_values, p_mask, i_b, o_l, o_c, length, channels, ACC)
        scores = scores_of(query, load_key(p_key, i_b, i_head, o_l, length, heads, dim, ACC, BD), seen, ACC)
        total, weight, base = add_tile(scores, values, seen, total, weight, base, ACC, BL)
        start += BL
    known = base > float("-inf")
    weight = tl.where(known, weight, 1.0)
    moved = base + tl.log(weight)
    factor = tl.exp(tl.where(known, base - moved, 0.0))
    out = tl.where(known, total / weight, 0.0)
    weight = tl.where(known, weight * factor, 0.0)
    store_rows(p_out, i_b, i_head, o_t, o_c, queries, heads, channels, out)
    store_rows(p_weight, i_b, i_head, o_t, o_c, queries, heads, channels, weight)
    store_rows(p_base, i_b, i_head, o_t, o_c, queries, heads, channels, moved)


@triton.jit
def gradients_at(
    p_query, p_key, p_values, p_mask, p_shares, p_out, p_base, i_b, i_head, o_t, o_l, o_c, queries, heads, length, dim,
    channels, ACC: tl.constexpr, BT: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Query and key of a tile, and the gradients of its scores and values."""
    query = load_query(p_query, i_head, o_t, queries, heads, dim, BD)
    key = load_key(p_key, i_b, i_head, o_l, length, heads, dim, ACC, BD)
    values, seen = load_observations(p_values, p_mask, i_b, o_l, o_c, length, channels, ACC)
    shares = load_rows(p_shares, i_b, i_head, o_t, o_c, queries, heads, channels, 0.0)
    out = load_rows(p_out, i_b, i_head, o_t, o_c, queries, heads, channels, 0.0)
    base = load_rows(p_base, i_b, i_head, o_t, o_c, queries, heads, channels, float("-inf"))
    scores = scores_of(query, key, seen, ACC)
    of_scores, of_values = tile_gradients(scores, values, seen, shares, out, base, ACC, BT, BL, BC)
    return query, key, of_scores, of_values


@triton.jit
def query_kernel(
    p_query, p_key, p_values, p_mask, p_shares, p_out, p_base, p_grad, queries, heads, length, dim, channels,
    ACC: tl.constexpr, BT: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """grad (batch, queries, heads, dim): what each sample adds to the gradient of the queries."""
    i_bh = tl.program_id(0).to(tl.int64)
    i_b, i_head = i_bh // heads, i_bh % heads
    o_t, o_d = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT), tl.arange(0, BD)
    grad = tl.zeros((BT, BD), ACC)
    first = 0
    while first < channels:
        start = 0
        while start < length:
            o_l, o_c = start + tl.arange(0, BL), first + tl.arange(0, BC)
            _, key, of_scores, _ = gradients_at(
                p_query, p_key, p_values, p_mask, p_shares, p_out, p_base, i_b, i_head, o_t, o_l, o_c, queries, heads,
                length, dim, channels, ACC, BT, BL, BC, BD,
            )  # fmt: skip
            grad += tl.dot(of_scores, key, input_precision="ieee", out_dtype=ACC)
            start += BL
        first += BC
    store_rows(p_grad, i_b, i_head, o_t, o_d, queries, heads, dim, grad)


@triton.jit
def key_kernel(
    p_query, p_key, p_values, p_mask, p_shares, p_out, p_base, p_grad, queries, heads, length, dim, channels,
    ACC: tl.constexpr, BT: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """grad (batch, length, heads, dim)."""
    i_bh = tl.program_id(0).to(tl.int64)
    i_b, i_head = i_bh // heads, i_bh % heads
    o_l, o_d = tl.program_id(1).to(tl.int64) * BL + tl.arange(0, BL), tl.arange(0, BD)
    grad = tl.zeros((BL, BD), ACC)
    first = 0
    while first < channels:
        start = 0
        while start < queries:
            o_t, o_c = start + tl.arange(0, BT), first + tl.arange(0, BC)
            query, _, of_scores, _ = gradients_at(
                p_query, p_key, p_values, p_mask, p_shares, p_out, p_base, i_b, i_head, o_t, o_l, o_c, queries, heads,
                length, dim, channels, ACC, BT, BL, BC, BD,
            )  # fmt: skip
            grad += tl.dot(tl.trans(of_scores), query, input_precision="ieee", out_dtype=ACC)
            start += BT
        first += BC
    store_rows(p_grad, i_b, i_head, o_l, o_d, length, heads, dim, grad)


@triton.jit
def value_kernel(
    p_query, p_key, p_values, p_mask, p_shares, p_out, p_base, p_grad, queries, heads, length, dim, channels,
    ACC: tl.constexpr, BT: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """grad (batch, length, channels), added up over the heads."""
    i_b, o_l = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) * BL + tl.arange(0, BL)
    o_c = tl.program_id(2) * BC + tl.arange(0, BC)
    grad = tl.zeros((BL, BC), ACC)
    i_head = 0
    while i_head < heads:
        start = 0
        while start < queries:
            o_t = start + tl.arange(0, BT)
            _, _, _, of_values = gradients_at(
                p_query, p_key, p_values, p_mask, p_shares, p_out, p_base, i_b, i_head, o_t, o_l, o_c, queries, heads,
                length, dim, channels, ACC, BT, BL, BC, BD,
            )  # fmt: skip
            grad += of_values
            start += BT
        i_head += 1
    store_rows(p_grad, i_b, 0, o_l, o_c, length, 1, channels, grad)


def forward(query: Tensor, key: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """out, normaliser and base; see `register_time_attention`."""
    p = _Problem(query, key, values, mask)
    shape = (key.shape[0], query.shape[0], query.shape[1], values.shape[2])
    out, normaliser, base = (p.inputs[0].new_empty(shape) for _ in range(3))
    p.launch(forward_kernel, (p.samples * p.heads, p.query_tiles, p.channel_tiles), out, normaliser, base)
    return out, normaliser, base


def backward(
    grad_out: Tensor, query: Tensor, key: Tensor, values: Tensor, mask: Tensor, out: Tensor, normaliser: Tensor,
    base: Tensor, wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and values; see `register_time_attention`."""
    p = _Problem(query, key, values, mask)
    shares = (grad_out / normaliser.masked_fill(normaliser == 0, math.inf)).contiguous()
    of_query = shares.new_empty(key.shape[0], *query.shape)
    of_key, of_values = shares.new_empty(key.shape), shares.new_empty(values.shape if wants_values else 0)
    given = (shares, out, base)
    p.launch(query_kernel, (p.samples * p.heads, p.query_tiles), *given, of_query)
    p.launch(key_kernel, (p.samples * p.heads, p.token_tiles), *given, of_key)
    if wants_values:
        p.launch(value_kernel, (p.samples, p.token_tiles, p.channel_tiles), *given, of_values)
    return (of_query.sum(0) * p.scale).to(query.dtype), of_key.to(key.dtype), of_values.to(values.dtype)


class _Problem:
    """What all kernels of a call share."""

    def __init__(self, query: Tensor, key: Tensor, values: Tensor, mask: Tensor) -> None:
        self.acc = torch.promote_types(query.dtype, torch.float32)
        self.scale = query.shape[2] ** -0.5
        key = key.masked_fill(~mask.any(-1)[..., None, None], 0)  # 0 times NaN would be NaN
        scaled = (query.to(self.acc) * self.scale).contiguous()
        self.inputs = scaled, key.contiguous(), values.contiguous(), mask.contiguous().view(torch.uint8)
        self.samples, self.channels = key.shape[0], values.shape[2]
        self.queries, self.heads, self.dim = query.shape
        self.length = key.shape[1]
        self.block = min(CHANNELS, _power(self.channels))
        self.query_tiles = triton.cdiv(self.queries, QUERIES)
        self.token_tiles = triton.cdiv(self.length, TOKENS)
        self.channel_tiles = triton.cdiv(self.channels, self.block)

    def launch(self, kernel: Any, grid: tuple[int, ...], *tensors: Tensor) -> None:
        """Run a kernel on the inputs and `tensors`."""
        if math.prod(grid) == 0:
            return
        with torch.cuda.device_of(self.inputs[0]):
            kernel[grid](
                *self.inputs, *tensors, self.queries, self.heads, self.length, self.dim, self.channels,
                ACC=tl.float64 if self.acc == torch.float64 else tl.float32, BT=QUERIES, BL=TOKENS, BC=self.block,
                BD=_power(self.dim),
            )  # fmt: skip


def _power(size: int) -> int:
    """A power of two that a matrix product takes."""
    return max(16, triton.next_power_of_2(size))


time_attention_triton = register_time_attention("triton", forward, backward)
