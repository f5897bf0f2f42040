"""Non-causal WERSA attention on a CPU: the keys summed once, then the queries."""

import math

import torch
from torch import Tensor

from seqattn.kernels.wersa.cpu_problem import Gradients, Problem


def forward(p: Problem, tokens: int, out: Tensor, normaliser: Tensor, sums: Tensor, log_max: Tensor) -> None:
    """Fill out, normaliser, sums and log_max of `register_wersa`, in blocks of `tokens` tokens."""
    summed_keys = sums.flatten(0, 1).zero_()  # (batch · heads, features, value_dim + 1)
    maximum = log_max.flatten().fill_(-math.inf)
    for window in p.windows(p.k, tokens):
        for block, x in window.blocks(tokens):
            phi = p.key_products(x, block)
            if p.exponential:
                before = maximum.clone()
                torch.maximum(maximum, phi.amax((1, 2)), out=maximum)
                summed_keys *= (before - _finite(maximum)).exp()[:, None, None]
                phi.sub_(_finite(maximum)[:, None, None]).exp_()
            summed_keys.baddbmm_(phi.transpose(1, 2), p.values(block))
    log_max.copy_(_finite(log_max))
    for window in p.windows(p.q, tokens):
        for block, x in window.blocks(tokens):
            p.divide(p.query_features(x) @ summed_keys, block, out, normaliser)


def backward(
    p: Problem, tokens: int, gradients: Gradients, grad_out: Tensor, out: Tensor, normaliser: Tensor, sums: Tensor,
    log_max: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
) -> None:  # fmt: skip
    """Fill the gradients of q, k and v; what gains, projections and bandwidth receive is added up in `gradients`."""
    summed_keys = sums.flatten(0, 1)
    grad_sums = torch.zeros_like(summed_keys)
    for window in p.windows(p.q, tokens):
        for block, x in window.blocks(tokens):
            phi, grad_summed = p.query_features(x), p.summed_gradient(grad_out, out, normaliser, block)
            grad_sums.baddbmm_(phi.transpose(1, 2), grad_summed)
            x.copy_(gradients.of_queries(x, phi, grad_summed @ summed_keys.transpose(1, 2)))
        p.filter.backward(window.tokens, p.q, grad_q, window.start)
    for window in p.windows(p.k, tokens):
        for block, x in window.blocks(tokens):
            phi, values = p.key_products(x, block), p.values(block)
            if p.exponential:
                phi.sub_(log_max.flatten()[:, None, None]).exp_()
            p.put(p.blank(phi @ grad_sums[..., :-1], block), block, grad_v)
            x.copy_(gradients.of_keys(x, phi, values @ grad_sums.transpose(1, 2)))
        p.filter.backward(window.tokens, p.k, grad_k, window.start)


def _finite(maximum: Tensor) -> Tensor:
    """0 for the maximum of nothing."""
    return maximum.masked_fill(maximum == -math.inf, 0)
