"""WERSA and Performer attention as one would write them in PyTorch, with every feature in memory: for comparison."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def plain_wersa(q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj: Tensor, levels: int = 4) -> Tensor:
    """Haar coefficients times gains, the inverse, rectified features, linear attention; not causal.

    q, k, v: (batch, heads, length, dim), length a multiple of 2^levels; gains: (batch, length, levels + 1).
    """
    q, k = (_filtered(x, gains, levels) for x in (q, k))
    return _attend(*(F.relu(x @ proj) / math.sqrt(proj.shape[1]) for x in (q, k)), v)


def performer_relu(q: Tensor, k: Tensor, v: Tensor, proj: Tensor) -> Tensor:
    """Linear attention with rectified random features (arXiv:2009.14794), without a filter."""
    return _attend(*(F.relu(x @ proj) / math.sqrt(proj.shape[1]) for x in (q, k)), v)


def performer_exp(q: Tensor, k: Tensor, v: Tensor, proj: Tensor) -> Tensor:
    """Linear attention with positive exponential random features of normal directions, without a filter."""
    scale = q.shape[-1] ** -0.25
    features = []
    for x, over in ((q, (-1,)), (k, (-2, -1))):
        logs = x * scale @ proj - (x * scale).square().sum(-1, keepdim=True) / 2
        features.append(torch.exp(logs - logs.amax(over, keepdim=True).detach()))
    return _attend(*features, v, eps=0.0)


def _attend(phi_q: Tensor, phi_k: Tensor, v: Tensor, eps: float = 1e-6) -> Tensor:
    weights = phi_q @ phi_k.sum(-2)[..., None]
    return phi_q @ (phi_k.transpose(-1, -2) @ v) / (weights + eps)


def _filtered(x: Tensor, gains: Tensor, levels: int) -> Tensor:
    details, approximation = [], x
    for level in range(1, levels + 1):
        even, odd = approximation.unflatten(2, (-1, 2)).unbind(3)
        details.append((even - odd) / math.sqrt(2) * gains[:, None, :: 2**level, level - 1, None])
        approximation = (even + odd) / math.sqrt(2)
    approximation = approximation * gains[:, None, :: 2**levels, levels, None]
    for detail in reversed(details):
        pairs = torch.stack([approximation + detail, approximation - detail], dim=3) / math.sqrt(2)
        approximation = pairs.flatten(2, 3)
    return approximation
