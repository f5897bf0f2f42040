"""Streaming: some tokens at a time of causal WERSA attention, with a state that does not grow."""

import math

import torch
from torch import Tensor

from seqattn.kernels.wersa import reference

State = dict[str, Tensor]


def wersa_step(
    state: State | None, q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None,
    bandwidth: Tensor | None, levels: int, feature_map: str, eps: float,
) -> tuple[Tensor, State]:  # fmt: skip
    """See `wersa_attention_step`; the arguments are checked."""
    kind, dtype = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v, gains, proj_q = (tensor.to(dtype) for tensor in (q, k, v, gains, proj_q))
    proj_k = proj_q if proj_k is None else proj_k.to(dtype)
    scale = q.new_ones(()) if bandwidth is None else bandwidth.to(dtype)
    state = state or _empty_state(q, v, proj_q.shape[1], levels, feature_map)

    q, queries = _filter_after(state["queries"], q, gains)
    k, keys = _filter_after(state["keys"], k, gains)
    sums, log_max = state["sums"], state["log_max"]
    if feature_map == "relu":
        phi_q, phi_k = reference.relu_features(q, proj_q, scale), reference.relu_features(k, proj_k, scale)
    else:
        log_q, log_k = reference.log_features(q, proj_q, scale), reference.log_features(k, proj_k, scale)
        phi_q = (log_q - log_q.detach().amax(-1, keepdim=True)).exp()
    rows = []
    for token in range(q.shape[2]):
        if feature_map == "relu":
            key = phi_k[:, :, token]
        else:
            before, log_max = log_max, torch.maximum(log_max, log_k[:, :, token].detach().amax(-1, keepdim=True))
            key, sums = (log_k[:, :, token] - log_max).exp(), sums * (before - log_max).exp()[..., None]
        value = torch.cat([v[:, :, token], torch.ones_like(v[:, :, token, :1])], dim=-1)
        sums = sums + key[..., None] * value[..., None, :]
        rows.append(phi_q[:, :, token, None] @ sums)
    summed = torch.cat(rows, dim=2)
    out = reference.normalise(summed, feature_map, eps, torch.ones_like(summed[..., :1], dtype=torch.bool))
    return out.to(kind), {"sums": sums, "log_max": log_max, "queries": queries, "keys": keys}


def _empty_state(q: Tensor, v: Tensor, features: int, levels: int, feature_map: str) -> State:
    batch, heads, _, dim = q.shape
    tail = q.new_zeros(batch, heads, 2**levels - 1, dim)
    return {
        "sums": q.new_zeros(batch, heads, features, v.shape[-1] + 1),  # Σ phi(k) [v, 1]ᵀ
        # what the exponents of the keys in `sums` are relative to
        "log_max": q.new_full((batch, heads, 0 if feature_map == "relu" else 1), -math.inf),
        "queries": tail,  # the filter's last 2^levels - 1 tokens
        "keys": tail.clone(),
    }


def _filter_after(tail: Tensor, x: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """The causal filter of x, which follows the rows `tail`, and the tail after x."""
    rows = torch.cat([tail, x], dim=2)
    gains = torch.cat([gains.new_zeros(gains.shape[0], tail.shape[2], gains.shape[2]), gains], dim=1)
    return reference.filter_tokens(rows, gains, causal=True)[:, :, tail.shape[2] :], rows[:, :, x.shape[2] :]
