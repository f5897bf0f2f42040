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
    """See `wersa_attention_step`; the arguments but the state are checked."""
    kind, dtype = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v, gains, proj_q = (tensor.to(dtype) for tensor in (q, k, v, gains, proj_q))
    proj_k = proj_q if proj_k is None else proj_k.to(dtype)
    scale = q.new_ones(()) if bandwidth is None else bandwidth.to(dtype)
    empty = _empty_state(q, v, proj_q.shape[1], levels, feature_map)
    state = empty if state is None else _checked(state, empty)
    if not q.shape[2]:
        return v.to(kind), state

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
    return out.to(kind), state | {"sums": sums, "log_max": log_max, "queries": queries, "keys": keys}


def _empty_state(q: Tensor, v: Tensor, features: int, levels: int, feature_map: str) -> State:
    batch, heads, _, dim = q.shape
    tail = q.new_zeros(batch, heads, 0, dim)
    return {
        "levels": torch.tensor(levels),
        "sums": q.new_zeros(batch, heads, features, v.shape[-1] + 1),  # Σ phi(k) [v, 1]ᵀ
        # what the exponents of the keys in `sums` are relative to
        "log_max": q.new_full((batch, heads, 0 if feature_map == "relu" else 1), -math.inf),
        "queries": tail,  # the filter's last 2^levels - 1 tokens, as far as there are
        "keys": tail.clone(),
    }


def _checked(state: State, empty: State) -> State:
    """The state, if the call whose first state would be `empty` can go on from it."""
    advice = "give the arguments it was made with, or None to start anew"
    if missing := ", ".join(name for name in empty if name not in state):
        raise ValueError(f"wersa_attention_step: the state has no {missing}: {advice}")
    for name, like in empty.items():
        tensor, grows = state[name], name in ("queries", "keys")
        found, wanted = (tuple(one.shape[:2] + one.shape[3:] if grows else one.shape) for one in (tensor, like))
        if name != "levels" and (found, tensor.dtype, tensor.device) != (wanted, like.dtype, like.device):
            raise ValueError(
                f"wersa_attention_step: {name} of the state is {tensor.dtype} of shape {tuple(tensor.shape)} on "
                f"{tensor.device}, which does not go with these arguments: {advice}"
            )
    if not torch.compiler.is_compiling() and not torch.equal(state["levels"].cpu(), empty["levels"]):
        raise ValueError(
            f"wersa_attention_step: the state was made with {int(state['levels'])} levels, not "
            f"{int(empty['levels'])}: {advice}"
        )
    return state


def _filter_after(tail: Tensor, x: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """The causal filter of x, which follows the rows `tail`, and the tail after x."""
    rows = torch.cat([tail, x], dim=2)
    gains = torch.cat([gains.new_zeros(gains.shape[0], tail.shape[2], gains.shape[2]), gains], dim=1)
    kept = min(rows.shape[2], 2 ** (gains.shape[2] - 1) - 1)
    filtered = reference.filter_tokens(rows, gains, causal=True)[:, :, tail.shape[2] :]
    return filtered, rows[:, :, rows.shape[2] - kept :].clone()  # a view would keep all tokens in memory
