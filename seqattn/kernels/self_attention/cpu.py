"""Self-attention on a CPU: one task per head of a sequence, LANES queries or keys at a time.

A block of LANES queries goes through the keys in tiles: products with every key of a tile, weights relative to the
largest score so far, and the weighted sum of the values, all with a query in each lane, so that nothing is summed over
lanes. The backward pass computes the weights twice more: with a query in each lane for the gradient of queries, with a
key in each lane for those of keys and values. No score leaves the cache.
"""

import math

import numpy as np
import torch
from torch import Tensor

from seqattn.kernels.numba_support import run_tasks
from seqattn.kernels.self_attention import cpu_backward, cpu_forward
from seqattn.kernels.self_attention.operator import register_self_attention


def forward(packed: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """out and normaliser; see `register_self_attention`."""
    batch, length, _, heads, width = packed.shape
    out, normaliser = packed.new_empty(batch, length, heads, width), packed.new_empty(batch, heads, length)
    arguments = (packed.detach().numpy(), _ends(packed, lengths), _rate(packed), out.numpy(), normaliser.numpy())
    run_tasks(
        cpu_forward.forward_tasks, arguments, packed.new_empty(cpu_forward.scratch_size(length, width)), batch * heads
    )
    return out, normaliser


def backward(grad_out: Tensor, packed: Tensor, lengths: Tensor | None, out: Tensor, normaliser: Tensor) -> Tensor:
    """The gradient of packed; see `register_self_attention`."""
    batch, length, _, heads, width = packed.shape
    grad = torch.empty_like(packed)
    given = (tensor.detach().numpy() for tensor in (packed, grad_out, out, normaliser))
    arguments = (*given, _ends(packed, lengths), _rate(packed), grad.numpy())
    scratch = packed.new_empty(cpu_backward.scratch_size(length, width))
    run_tasks(cpu_backward.backward_tasks, arguments, scratch, batch * heads)
    return grad


def _ends(packed: Tensor, lengths: Tensor | None) -> np.ndarray:
    batch, length = packed.shape[:2]
    return np.full(batch, length) if lengths is None else lengths.to(torch.int64).clamp(0, length).numpy()


def _rate(packed: Tensor) -> np.ndarray:
    """log2(e) / sqrt(width), as an array of the dtype."""
    return packed.new_full((1,), math.log2(math.e) / math.sqrt(packed.shape[-1])).numpy()


self_attention_cpu = register_self_attention("cpu", forward, backward)
