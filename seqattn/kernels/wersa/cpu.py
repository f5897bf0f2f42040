"""WERSA attention on a CPU: tokens filtered and turned into features block by block, products by torch's BLAS.

The features of a block stay in the cache, and are computed again in the backward pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from seqattn.kernels.wersa import cpu_bidirectional, cpu_causal
from seqattn.kernels.wersa.cpu_problem import Gradients, Problem
from seqattn.kernels.wersa.operator import register_wersa

ROWS = 4096
"""Most rows, tokens times heads times sequences, of a block; at most a quarter of those there are, for the memory.

Half as many of causal attention, which keeps states and weights of every chunk beside features.
"""


def forward(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None, bandwidth: Tensor | None,
    lengths: Tensor | None, levels: int, feature_map: str, causal: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out, normaliser, sums and log_max; see `register_wersa`."""
    batch, heads, length, value_dim = v.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    maxima = 0 if feature_map == "relu" else length if causal else 1
    out, normaliser = torch.empty(v.shape, dtype=dtype), torch.empty(v.shape[:3], dtype=dtype)
    sums = torch.empty(batch, heads, proj_q.shape[1], value_dim + 1, dtype=dtype)
    log_max = torch.empty(batch, heads, maxima, dtype=dtype)
    attend = cpu_causal.forward if causal else cpu_bidirectional.forward
    for part, tokens in _parts(batch, heads, length, causal):
        of_part = None if lengths is None else lengths[part]
        problem = Problem(
            q[part], k[part], v[part], gains[part], proj_q, proj_k, bandwidth, of_part, feature_map, causal, eps
        )
        attend(problem, tokens, out[part], normaliser[part], sums[part], log_max[part])
    return out, normaliser, sums, log_max


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None,
    bandwidth: Tensor | None, lengths: Tensor | None, levels: int, feature_map: str, causal: bool, eps: float,
    out: Tensor, normaliser: Tensor, sums: Tensor, log_max: Tensor, wants_proj: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v, gains, proj_q, proj_k, bandwidth; see `register_wersa`."""
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=normaliser.dtype) for x in (q, k, v))
    grad_gains = torch.zeros(gains.shape, dtype=normaliser.dtype)
    summed: list[Tensor | None] = [None, None, None]  # of proj_q, proj_k, bandwidth
    differentiate = cpu_causal.backward if causal else cpu_bidirectional.backward
    for part, tokens in _parts(q.shape[0], q.shape[1], q.shape[2], causal):
        of_part = None if lengths is None else lengths[part]
        problem = Problem(
            q[part], k[part], v[part], gains[part], proj_q, proj_k, bandwidth, of_part, feature_map, causal, eps
        )
        gradients = Gradients(problem, proj_k is None, wants_proj)
        differentiate(
            problem, tokens, gradients, grad_out[part], out[part], normaliser[part], sums[part], log_max[part],
            grad_q[part], grad_k[part], grad_v[part],
        )  # fmt: skip
        grad_gains[part] = problem.filter.gradient()
        for index, gradient in enumerate((gradients.proj_q, gradients.proj_k, gradients.bandwidth)):
            before = summed[index]
            summed[index] = gradient if before is None or gradient is None else before + gradient
    given = (q, k, v, gains, proj_q if wants_proj else None, proj_k if wants_proj else None, bandwidth)
    found = (grad_q, grad_k, grad_v, grad_gains, *summed)
    return tuple(
        q.new_empty(0) if tensor is None else tensor.new_zeros(tensor.shape) if gradient is None
        else gradient.to(tensor.dtype)
        for tensor, gradient in zip(given, found, strict=True)
    )  # fmt: skip


def _parts(batch: int, heads: int, length: int, causal: bool) -> Iterator[tuple[slice, int]]:
    """The sequences to do at once, and the tokens of a block."""
    rows = min(ROWS, max(ROWS // 8, batch * heads * length // 4))
    if causal:
        rows //= 2
    together = max(1, rows // max(1, heads * length))
    tokens = max(1, rows // max(1, heads * min(batch, together)))
    for start in range(0, batch if heads else 0, together):
        yield slice(start, start + together), tokens


wersa_attention_cpu = register_wersa("cpu", forward, backward)
