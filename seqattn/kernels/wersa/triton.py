"""WERSA attention on a GPU, in Triton.

Queries and keys are filtered once; their features never leave the chip. Non-causal attention sums over the keys, part
by part, and reads with the queries. Causal attention cuts a sequence into parts: sums over each part, sums that enter
each part, then all parts side by side, tile by tile. The backward pass computes features again. Nothing depends on the
order in which programs run: sums that cross them are added from parts.
"""

import math
from typing import Any

import torch
from torch import Tensor

from seqattn.kernels.wersa.operator import register_wersa
from seqattn.kernels.wersa.reference import TINY
from seqattn.kernels.wersa.triton_filter import filter_gradient, filtered
from seqattn.kernels.wersa.triton_problem import Problem, Side


def forward(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None, bandwidth: Tensor | None,
    lengths: Tensor | None, levels: int, feature_map: str, causal: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out, normaliser, sums and log_max; see `register_wersa`."""
    p = Problem(q, v, gains, proj_q, proj_k, bandwidth, lengths, feature_map, eps)
    with torch.cuda.device_of(q):
        queries, keys = _sides(p, q, k, causal, v, None)
        if causal:
            rows, normaliser, sums = _causal_forward(p, queries, keys)
        else:
            sums = p.sums(keys).sum(0)
            rows, normaliser = p.read(queries, sums)
    out = rows / p.weight(normaliser).where(p.valid, 1)[..., None]
    return p.blank(out), normaliser, sums, _kept_maxima(keys, causal)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None,
    bandwidth: Tensor | None, lengths: Tensor | None, levels: int, feature_map: str, causal: bool, eps: float,
    out: Tensor, normaliser: Tensor, sums: Tensor, log_max: Tensor, wants_proj: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v, gains, proj_q, proj_k, bandwidth; see `register_wersa`."""
    p = Problem(q, v, gains, proj_q, proj_k, bandwidth, lengths, feature_map, eps)
    with torch.cuda.device_of(q):
        queries, keys = _sides(p, q, k, causal, v, log_max)
        rows, last = _summed_gradient(p, grad_out, out, normaliser)
        queries = queries._replace(rows=rows, last=last)
        differentiate = _causal_backward if causal else _backward
        (grad_q, grad_k), bands, grad_v, projections = differentiate(p, queries, keys, sums, wants_proj)
        grad_q, of_q = filter_gradient(grad_q, p.blank(q), p.gains, causal)
        grad_k, of_k = filter_gradient(grad_k, p.blank(k), p.gains, causal)
    grad_gains = of_q + of_k
    grad_gains = grad_gains if gains.ndim == 3 else grad_gains.sum(1)
    grad_bandwidth = sum(band.masked_fill(~p.valid, 0).sum() for band in bands)
    if proj_k is None and wants_proj:
        projections = (projections[0] + projections[1], None)
    given = (q, k, v, gains, proj_q if wants_proj else None, proj_k if wants_proj else None, bandwidth)
    found = (p.blank(grad_q), p.blank(grad_k), p.blank(grad_v), grad_gains, *projections, grad_bandwidth)
    return tuple(
        q.new_empty(0) if tensor is None else gradient.to(tensor.dtype)
        for tensor, gradient in zip(given, found, strict=True)
    )


def _sides(
    p: Problem, q: Tensor, k: Tensor, causal: bool, v: Tensor, log_max: Tensor | None
) -> tuple[Side, Side]:  # fmt: skip
    """Filtered queries and keys; the keys carry the values. log_max: as the forward pass kept it."""
    x_q, x_k = (filtered(p.blank(x), p.gains, causal) for x in (q, k))
    last, values = p.valid.to(p.acc).contiguous(), p.blank(v)
    ref_q = ref_k = None
    if p.exponential:
        ref_q = p.blank(p.maxima(x_q, p.proj_q, norm=False))
        if log_max is None:
            ref_k = p.maxima(x_k, p.proj_k, norm=True)
            if causal:
                ref_k = ref_k.cummax(-1).values
            else:
                ref_k = torch.nn.functional.pad(ref_k, (0, 1), value=-math.inf).amax(-1, keepdim=True)
            ref_k = ref_k.masked_fill(ref_k == -math.inf, 0)
        else:
            ref_k = log_max
        ref_k = ref_k.expand_as(last).contiguous()
    return Side(x_q, p.proj_q, ref_q, values, last, False), Side(x_k, p.proj_k, ref_k, values, last, True)


def _kept_maxima(keys: Side, causal: bool) -> Tensor:
    if keys.ref is None:
        return keys.last[..., :0].contiguous()
    if causal:
        return keys.ref
    kept = keys.ref[..., :1] if keys.ref.shape[2] else keys.ref.new_zeros(*keys.ref.shape[:2], 1)
    return kept.contiguous()


def _summed_gradient(p: Problem, grad_out: Tensor, out: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of summed values and of the summed weights, as what queries carry."""
    rows = p.blank(grad_out / p.weight(normaliser).where(p.valid, 1)[..., None]).to(p.kind)
    last = -(rows * out).sum(-1)
    if p.exponential:
        last = last.masked_fill(normaliser < TINY, 0)
    return rows, p.blank(last)


def _backward(p: Problem, queries: Side, keys: Side, sums: Tensor, wants_proj: bool) -> tuple[Any, ...]:
    """Gradients of filtered queries and keys, of the bandwidth in parts, of values, and of both projections."""
    grad_q, band_q = p.gradient(queries, sums)
    grad_sums = p.sums(queries).sum(0)
    grad_k, band_k = p.gradient(keys, grad_sums)
    grad_v, _ = p.read(keys, grad_sums)
    projections: tuple[Tensor | None, ...] = (None, None)
    if wants_proj:
        projections = (p.proj_gradient(queries, sums), p.proj_gradient(keys, grad_sums))
    return (grad_q, grad_k), (band_q, band_k), grad_v, projections


def _causal_forward(p: Problem, queries: Side, keys: Side) -> tuple[Tensor, Tensor, Tensor]:
    part = p.part()
    entry, entry_nu, whole = _entering(p, keys, keys.ref, part, reverse=False)
    rows, last, _ = p.causal(queries, keys, keys.ref, entry, entry_nu, part, reverse=False, gradient=False)
    return rows, last, whole


def _causal_backward(p: Problem, queries: Side, keys: Side, sums: Tensor, wants_proj: bool) -> tuple[Any, ...]:
    """As `_backward`; keys read queries from the end, where nu = -mu rises."""
    part = p.part()
    entry, entry_nu, _ = _entering(p, keys, keys.ref, part, reverse=False)
    grad_q, band_q, proj_q = p.causal(
        queries, keys, keys.ref, entry, entry_nu, part, reverse=False, gradient=True, proj=wants_proj
    )
    nu = None if keys.ref is None else -keys.ref
    entry, entry_nu, _ = _entering(p, queries, nu, part, reverse=True)
    grad_v, _, _ = p.causal(keys, queries, nu, entry, entry_nu, part, reverse=True, gradient=False)
    grad_k, band_k, proj_k = p.causal(
        keys, queries, nu, entry, entry_nu, part, reverse=True, gradient=True, proj=wants_proj
    )
    return (grad_q, grad_k), (band_q, band_k), grad_v, (proj_q, proj_k) if wants_proj else (None, None)


def _entering(p: Problem, other: Side, nu: Tensor | None, part: int, *, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sums that enter each part, (parts, batch, heads, features, value_dim + 1), their exponents' base, the total."""
    ref, leaving = None, None
    if nu is not None and other.ref is not None:
        starts = torch.arange(0, p.length, part, device=nu.device)
        ends = (starts + part).clamp_max(p.length) - 1
        leaving = nu[..., starts if reverse else ends].movedim(-1, 0)  # (parts, batch, heads)
        per_token = leaving.repeat_interleave(part, 0)[: p.length].movedim(0, -1)
        ref = (other.ref - nu + per_token).contiguous()
    sums = p.sums(other, ref, part)
    entry, order = torch.zeros_like(sums), range(len(sums) - 1, -1, -1) if reverse else range(len(sums))
    entry_nu = sums.new_zeros(sums.shape[:3])
    carried, before = torch.zeros_like(sums[0]), None
    for index in order:
        entry[index] = carried
        if leaving is not None and len(leaving):
            # nothing enters the first: any number does
            entry_nu[index] = leaving[index] if before is None else before
            moved = torch.zeros_like(leaving[index]) if before is None else before - leaving[index]
            carried, before = carried * moved.exp()[..., None, None], leaving[index]
        carried = carried + sums[index]
    return entry, entry_nu, carried


wersa_attention_triton = register_wersa("triton", forward, backward)
