"""Causal WERSA attention on a CPU: chunk by chunk, with a state of summed keys before and of summed queries after.

What the exponents of "exp" are relative to rises along a sequence, to mu_t at token t: key j counts e^(mu_j - mu_t) for
query t, and a state moves from mu to mu' with e^(mu - mu'). No exponent is positive.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from seqattn.kernels.wersa.cpu_problem import Gradients, Problem, Window


class Chunk(NamedTuple):
    """Features, values and decays of one chunk; decays are None for "relu"."""

    phi_q: Tensor  # (batch · heads, tokens, features)
    phi_k: Tensor
    values: Tensor  # (batch · heads, tokens, value_dim + 1)
    within: Tensor | None  # (batch · heads, query, key): e^(mu_j - mu_t)
    from_start: Tensor | None  # (batch · heads, tokens, 1): e^(mu before the chunk - mu_t)
    to_end: Tensor | None  # (batch · heads, tokens, 1): e^(mu_t - mu at the end)
    across: Tensor | None  # (batch · heads, 1, 1): e^(mu before the chunk - mu at the end)


def forward(p: Problem, tokens: int, out: Tensor, normaliser: Tensor, sums: Tensor, log_max: Tensor) -> None:
    """Fill out, normaliser, sums and log_max of `register_wersa`, in chunks of `tokens` tokens."""
    state = sums.flatten(0, 1).zero_()
    queries, keys = (_filtered(p, x) for x in (p.q, p.k))
    for (block, q), (_, k) in zip(queries.blocks(tokens), keys.blocks(tokens), strict=True):
        if p.exponential:
            _continue_maxima(p.key_products(k, block).amax(-1), block, log_max)
        chunk = _chunk(p, block, q, k, log_max)
        summed = _scaled(chunk.phi_q @ state, chunk.from_start)
        summed.baddbmm_(_weights(chunk.phi_q, chunk.phi_k, chunk), chunk.values)
        p.divide(summed, block, out, normaliser)
        _advance(state, chunk)


def backward(
    p: Problem, tokens: int, gradients: Gradients, grad_out: Tensor, out: Tensor, normaliser: Tensor, sums: Tensor,
    log_max: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
) -> None:  # fmt: skip
    """Fill the gradients of q, k and v; what gains, projections and bandwidth receive is added up in `gradients`."""
    queries, keys = (_filtered(p, x) for x in (p.q, p.k))
    filtered_grad = Window(0, torch.empty_like(p.q))
    pieces = list(zip(queries.blocks(tokens), keys.blocks(tokens), filtered_grad.blocks(tokens), strict=True))
    state = torch.zeros_like(sums).flatten(0, 1)
    for (block, q), (_, k), (_, grad) in pieces:
        chunk, grad_summed = _chunk(p, block, q, k, log_max), p.summed_gradient(grad_out, out, normaliser, block)
        grad_phi = _scaled(grad_summed @ state.transpose(1, 2), chunk.from_start)
        grad_phi.baddbmm_(_weights(grad_summed, chunk.values, chunk), chunk.phi_k)
        grad.copy_(gradients.of_queries(q, chunk.phi_q, grad_phi))
        _advance(state, chunk)
    p.filter.backward(filtered_grad.tokens, p.q, grad_q)

    after = torch.zeros_like(state)  # Σ phi(q) grad_summedᵀ of later queries, relative to mu at the chunk's end
    for (block, q), (_, k), _ in reversed(pieces):
        chunk, grad_summed = _chunk(p, block, q, k, log_max), p.summed_gradient(grad_out, out, normaliser, block)
        weights = _weights(chunk.phi_q, chunk.phi_k, chunk).transpose(1, 2)
        grad_values = _scaled(chunk.phi_k @ after, chunk.to_end).baddbmm_(weights, grad_summed)
        grad_v[:, :, block] = p.blank(grad_values[..., :-1], block).unflatten(0, (-1, p.heads))
        grad_phi = _scaled(chunk.values @ after.transpose(1, 2), chunk.to_end)
        grad_phi.baddbmm_(_weights(grad_summed, chunk.values, chunk).transpose(1, 2), chunk.phi_q)
        k.copy_(gradients.of_keys(k, chunk.phi_k, grad_phi))
        _scaled(after, chunk.across)
        after.baddbmm_(_scaled(chunk.phi_q, chunk.from_start).transpose(1, 2), grad_summed)
    p.filter.backward(keys.tokens, p.k, grad_k)


def _filtered(p: Problem, x: Tensor) -> Window:
    window = Window(0, torch.empty_like(x))
    p.filter.apply(x, window.tokens)
    return window


def _continue_maxima(maxima: Tensor, block: slice, log_max: Tensor) -> None:
    """log_max (batch, heads, length) of a block, from the maxima of its own tokens and what stands before it."""
    running = maxima.cummax(-1).values.view(*log_max.shape[:2], -1)
    if block.start:
        # 0 may stand for nothing: then the sequence is empty, and its weights are all 0
        running = torch.maximum(running, log_max[:, :, block.start - 1, None])
    log_max[:, :, block] = running.masked_fill_(running == -math.inf, 0)


def _chunk(p: Problem, block: slice, q: Tensor, k: Tensor, log_max: Tensor) -> Chunk:
    phi_q, products, values = p.query_features(q), p.key_products(k, block), p.values(block)
    if not p.exponential:
        return Chunk(phi_q, products, values, None, None, None, None)
    mu = log_max[:, :, block].flatten(0, 1)[..., None]
    before = log_max[:, :, max(0, block.start - 1)].flatten()[:, None, None]
    end = mu[:, -1:]
    decays = ((mu.transpose(1, 2) - mu), before - mu, mu - end, before - end)
    return Chunk(phi_q, products.sub_(mu).exp_(), values, *(decay.exp() for decay in decays))


def _weights(of_queries: Tensor, of_keys: Tensor, chunk: Chunk) -> Tensor:
    """(batch · heads, query, key): products of rows, decayed, of keys up to each query."""
    products = of_queries @ of_keys.transpose(1, 2)
    return _scaled(products, chunk.within).tril_()


def _advance(state: Tensor, chunk: Chunk) -> None:
    """state to the end of the chunk; spoils chunk.phi_k."""
    _scaled(state, chunk.across)
    state.baddbmm_(_scaled(chunk.phi_k, chunk.to_end).transpose(1, 2), chunk.values)


def _scaled(x: Tensor, decay: Tensor | None) -> Tensor:
    """x times decay, in place."""
    return x if decay is None else x.mul_(decay)
