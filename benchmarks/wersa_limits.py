"""What WERSA's attention weights tend to as features are added, from the operator itself; seconds of runtime."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels import wersa_attention
from seqattn.layers.wersa import random_directions

TOKENS, DIM, LEVELS = 128, 64, 4
COUNTS = (64, 256, 1024, 4096, 16384)
SPREADS = (0.25, 1.0)  # standard deviations of q and k; rectified features give the same weights for any
SOFTMAX, ARC_COSINE, MEAN = "softmax preset to softmax", "default to arc-cosine", "port to the mean weighted by |k|"


def limits() -> dict:
    """Mean total-variation distances by the number of features: of the weights to their limit, and between queries.

    The distance between queries is that of their weights to the mean over queries: 0 where content plays no part.
    """
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[float]] = {}
    for spread in SPREADS:
        q, k = (spread * torch.randn(1, 1, TOKENS, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
        targets = _targets(q[0, 0], k[0, 0])
        for name in targets if spread == 1 else (SOFTMAX,):
            row = f"{name}, σ = {spread}" if name == SOFTMAX else name
            for count in COUNTS:
                weights = _weights(q, k, name, count, generator)
                rows.setdefault(row, []).append(_distance(weights, targets[name]))
                if name != SOFTMAX:
                    between = _distance(weights, weights.mean(0))
                    rows.setdefault(f"between queries, {name.split()[0]}", []).append(between)
        uniform = torch.full((TOKENS, TOKENS), 1 / TOKENS, dtype=q.dtype)
        rows[f"uniform weights to softmax, σ = {spread}"] = [_distance(uniform, targets[SOFTMAX])] * len(COUNTS)
    return {"features": list(COUNTS), "rows": rows}


def _targets(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """The limit of each preset's attention weights, (queries, keys)."""
    cosine = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).T).clamp(-1, 1)
    angle, norms = cosine.acos(), k.norm(dim=-1)
    arc = norms * (angle.sin() + (math.pi - angle) * cosine)  # the norm of a query cancels
    return {
        SOFTMAX: (q @ k.T / math.sqrt(DIM)).softmax(-1),
        ARC_COSINE: arc / arc.sum(-1, keepdim=True),
        MEAN: (norms / norms.sum()).expand(len(q), len(k)),
    }


def _weights(q: Tensor, k: Tensor, name: str, count: int, generator: torch.Generator) -> Tensor:
    """Attention weights of the operator, (queries, keys): what it makes of values that are the identity."""
    exponential = name == SOFTMAX
    draws = [random_directions(DIM, count, exponential, generator).to(q.dtype) for _ in range(2)]
    bandwidth = torch.tensor(DIM**0.25, dtype=q.dtype) if exponential else None
    values, gains = torch.eye(TOKENS, dtype=q.dtype)[None, None], torch.ones(1, LEVELS + 1, dtype=q.dtype)
    return wersa_attention(
        q, k, values, gains, draws[0], draws[1] if name == MEAN else None, levels=LEVELS,
        feature_map="exp" if exponential else "relu", bandwidth=bandwidth, eps=0.0,
    )[0, 0]  # fmt: skip


def _distance(weights: Tensor, target: Tensor) -> float:
    return ((weights - target).abs().sum(-1) / 2).mean().item()
