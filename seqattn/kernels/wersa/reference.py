"""WERSA attention in plain PyTorch: the law that the kernels are tested against."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels.wersa.haar import haar_transform, inverse_haar_transform

TINY = 1e-30
"""Least normaliser of the exponential map, which has no eps."""


def wersa_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None, bandwidth: Tensor | None,
    lengths: Tensor | None, levels: int, feature_map: str, causal: bool, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return (out,), (batch, heads, length, value_dim) in q's dtype.

    The arguments are those of `wersa_attention`, checked. Arithmetic is in float64 for float64 and in float32
    otherwise. Unlike the kernels it keeps the features of every token.
    """
    (batch, _, length, _), kind = q.shape, q.dtype
    dtype = torch.promote_types(kind, torch.float32)
    ends = torch.full((batch,), length, device=q.device) if lengths is None else lengths
    valid = (torch.arange(length, device=q.device) < ends[:, None])[:, None, :, None]  # (batch, 1, length, 1)
    q, k, v = (tensor.to(dtype).where(valid, 0) for tensor in (q, k, v))
    gains = gains.to(dtype)[:, None] if gains.ndim == 2 else gains.to(dtype).where(valid[:, 0], 0)
    gains = gains.expand(batch, length, levels + 1)
    scale = q.new_ones(()) if bandwidth is None else bandwidth.to(dtype)
    proj_q, proj_k = (proj_q if proj is None else proj for proj in (proj_q.to(dtype), proj_k))

    q, k = filter_tokens(q, gains, causal), filter_tokens(k, gains, causal)
    log_max = None
    if feature_map == "relu":
        phi_q, phi_k = relu_features(q, proj_q, scale), relu_features(k, proj_k.to(dtype), scale).where(valid, 0)
    else:
        log_q = log_features(q, proj_q, scale)
        log_k = log_features(k, proj_k.to(dtype), scale).masked_fill(~valid, -math.inf)
        log_max = key_maximum(log_k, causal)
        phi_q, phi_k = (log_q - log_q.detach().amax(-1, keepdim=True)).exp(), (log_k - log_max).exp()
    v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)  # the last column sums the weights
    summed = causal_product(phi_q, phi_k, v, log_max) if causal else phi_q @ (phi_k.transpose(-1, -2) @ v)
    return (normalise(summed, feature_map, eps, valid).to(kind),)


def filter_tokens(x: Tensor, gains: Tensor, causal: bool) -> Tensor:
    """The wavelet filter of (batch, heads, length, dim) along its length.

    gains: (batch, length, levels + 1), the gain of each token for every detail level, finest first, and the
    approximation. A coefficient takes the gain of the first token it covers. The causal filter is undecimated: every
    token has coefficients of its own, over the 2^l tokens up to it.
    """
    levels = gains.shape[-1] - 1
    if not causal:
        bands = haar_transform(x, levels)
        strides = [2 ** min(level, levels) for level in range(1, levels + 2)]
        gained = [
            band * gains[:, None, ::stride, index, None]
            for index, (band, stride) in enumerate(zip(bands, strides, strict=True))
        ]
        return inverse_haar_transform(gained, x.shape[2])
    *of_details, of_approximation = gains[:, None, ..., None].unbind(-2)
    mean, out = x, torch.zeros_like(x)
    for level, gain in enumerate(of_details):
        finer, mean = mean, (mean + _delay(mean, 2**level)) / 2  # the mean of the last 2^(level + 1) tokens
        out = out + gain * (finer - mean)
    return out + of_approximation * mean


def _delay(x: Tensor, steps: int) -> Tensor:
    """x, `steps` tokens later, with zeros before."""
    return F.pad(x[..., : max(0, x.shape[-2] - steps), :], (0, 0, min(steps, x.shape[-2]), 0))


def relu_features(x: Tensor, proj: Tensor, bandwidth: Tensor) -> Tensor:
    """max(0, x R / b) / √m: their products tend to the arc-cosine kernel of order 1."""
    return F.relu(x @ proj / bandwidth) / math.sqrt(proj.shape[1])


def log_features(x: Tensor, proj: Tensor, bandwidth: Tensor) -> Tensor:
    """Logarithms of the positive features of the softmax kernel: x R / b - |x|² / 2b² - log √m (arXiv:2009.14794)."""
    return x @ proj / bandwidth - x.square().sum(-1, keepdim=True) / (2 * bandwidth**2) - math.log(proj.shape[1]) / 2


def key_maximum(log_features: Tensor, causal: bool) -> Tensor:
    """What the exponents of keys are relative to, detached: it cancels from the ratio.

    The maximum over all tokens and features, (batch, heads, 1, 1); causal: over tokens so far, (batch, heads, length,
    1). 0 where there is no valid token.
    """
    maximum = log_features.detach().amax(-1)
    if causal:
        maximum = maximum.cummax(-1).values
    else:
        maximum = F.pad(maximum, (0, 1), value=-math.inf).amax(-1, keepdim=True)
    return maximum.masked_fill(maximum == -math.inf, 0)[..., None]


def causal_product(phi_q: Tensor, phi_k: Tensor, v: Tensor, log_max: Tensor | None) -> Tensor:
    """phi_q,t · Σ_{j ≤ t} phi_k,j v_jᵀ token by token: (batch, heads, length, value columns).

    log_max: what the exponents of each token's phi_k are relative to, never falling; the state moves along.
    """
    state = phi_k.new_zeros(*phi_k.shape[:2], phi_k.shape[-1], v.shape[-1])
    rows, previous = [], None
    maxima = [None] * v.shape[2] if log_max is None else log_max.unbind(2)
    for query, key, value, maximum in zip(phi_q.unbind(2), phi_k.unbind(2), v.unbind(2), maxima, strict=True):
        if previous is not None and maximum is not None:
            state = state * (previous - maximum).exp()[..., None]
        state, previous = state + key[..., None] * value[..., None, :], maximum
        rows.append((query[..., None, :] @ state).squeeze(-2))
    return torch.stack(rows, 2) if rows else v


def normalise(summed: Tensor, feature_map: str, eps: float, valid: Tensor) -> Tensor:
    """The weighted sums over the sum of weights, which is the last column; 0 where not valid."""
    numerator, weight = summed.split([summed.shape[-1] - 1, 1], dim=-1)
    weight = weight + eps if feature_map == "relu" else weight.clamp_min(TINY)
    return (numerator / weight.where(valid, 1)).where(valid, 0)
