"""What WERSA attention converges to as features grow, and how fast."""

import math

import pytest
import torch

from seqattn.kernels import wersa_attention
from seqattn.layers.wersa import random_directions

LENGTH, DIM = 128, 64
COUNTS = (1024, 4096, 16384, 65536)


def problem(spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (spread * torch.randn(1, 1, LENGTH, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    return q, k, generator


def weights(q, k, proj_q, proj_k=None, **options):
    """The attention weights (query, key): the output for the unit vectors as values."""
    v = torch.eye(LENGTH, dtype=torch.float64)[None, None]
    gains = torch.ones(1, 2, dtype=torch.float64)
    if options.get("causal"):
        gains = gains[:, None].expand(1, LENGTH, 2)
    return wersa_attention(q, k, v, gains, proj_q, proj_k, levels=1, eps=0.0, **options)[0, 0]


def total_variation(weights, limit):
    return ((weights - limit).abs().sum(-1) / 2).mean().item()


def slope(counts, errors):
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (counts, errors))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()


def normal(features, generator, scale=1.0):
    return scale * torch.randn(DIM, features, generator=generator, dtype=torch.float64)


def orthogonal(features, generator):
    return random_directions(DIM, features, orthogonal=True, generator=generator).double()


def arc_cosine(q, k):
    """Attention weights of the arc-cosine kernel of order 1, |q| |k| (sin θ + (π - θ) cos θ)."""
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).transpose(-1, -2)
    angle = cosine.clamp(-1, 1).acos()
    kernel = k.norm(dim=-1)[:, :, None] * (angle.sin() + (math.pi - angle) * cosine)
    return (kernel / kernel.sum(-1, keepdim=True))[0, 0]


@pytest.mark.parametrize("causal", [False, True], ids=["both-sides", "causal"])
@pytest.mark.parametrize(("draw", "spread"), [(normal, 0.25), (normal, 0.5), (orthogonal, 0.25)])
def test_exponential_features_tend_to_softmax_attention(draw, spread, causal):
    q, k, generator = problem(spread)
    bandwidth = torch.tensor(DIM**0.25, dtype=torch.float64)
    scores = (q @ k.transpose(-1, -2))[0, 0] / math.sqrt(DIM)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
    errors = [
        total_variation(
            weights(q, k, draw(count, generator), feature_map="exp", bandwidth=bandwidth, causal=causal),
            scores.softmax(-1),
        )
        for count in COUNTS
    ]
    assert -0.6 <= slope(COUNTS, errors) <= -0.4
    assert errors[-1] < {0.25: 0.003, 0.5: 0.02}[spread]


def test_tied_rectified_features_tend_to_arc_cosine_attention_and_not_to_softmax():
    q, k, generator = problem(1.0)
    limit = arc_cosine(q, k)
    errors = [total_variation(weights(q, k, normal(count, generator, DIM**-0.5)), limit) for count in COUNTS]
    assert -0.6 <= slope(COUNTS, errors) <= -0.4
    assert errors[-1] < 0.006
    softmax = ((q @ k.transpose(-1, -2))[0, 0] / math.sqrt(DIM)).softmax(-1)
    assert total_variation(softmax, limit) > 0.2


def test_independent_rectified_features_lose_all_dependence_on_the_query():
    q, k, generator = problem(1.0)
    norms = k.norm(dim=-1)[0]
    tied, untied, errors = [], [], []
    for count in COUNTS:
        both = [normal(count, generator, DIM**-0.5) for _ in range(2)]
        found = weights(q, k, *both)
        errors.append(total_variation(found, norms / norms.sum()))
        untied.append(total_variation(found, found.mean(0)))
        alike = weights(q, k, both[0])
        tied.append(total_variation(alike, alike.mean(0)))
    assert -0.6 <= slope(COUNTS, errors) <= -0.4
    assert -0.6 <= slope(COUNTS, untied) <= -0.4
    assert tied[-1] > 0.07
    assert abs(tied[-1] / tied[-2] - 1) < 0.05


def test_rectified_weights_cannot_be_peaked():
    generator = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 1, LENGTH, DIM, generator=generator, dtype=torch.float64), dim=-1)
    found = weights(k, k, normal(65536, generator, DIM**-0.5))
    orthogonal_pairs = (k @ k.transpose(-1, -2))[0, 0].abs() < 0.02
    ratio = found.diagonal()[:, None] / found
    assert ratio[orthogonal_pairs].max() < 1.1 * math.pi
