"""softmax(Q K^T / sqrt(width)) V within a sequence, of query, key and value as one projection gives them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels.arguments import is_transformed

GROUP = 8
"""Channels that the CPU kernel does at once."""
WIDEST = 32
"""Channels of a head up to which the CPU kernel is faster than `scaled_dot_product_attention`."""


def self_attention(packed: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Every step of a sequence looks at all of its valid steps.

    On a CPU, in float32 and float64 and with heads of 8, 16, 24 or 32 channels, a kernel of our own; everywhere else,
    and under the transforms of torch.func, `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        packed: (batch, length, 3, heads, width), query, key and value.
        lengths: (batch,) valid steps, None means all. The rest changes nothing and is 0 in the result.

    Returns:
        (batch, length, heads, width).

    Raises:
        ValueError: packed or lengths do not have these shapes.
    """
    if packed.ndim != 5 or packed.shape[2] != 3:
        raise ValueError(
            f"self_attention: packed has shape {tuple(packed.shape)}: give (batch, length, 3, heads, width)"
        )
    if lengths is not None and lengths.shape != packed.shape[:1]:
        raise ValueError(
            f"self_attention: lengths has shape {tuple(lengths.shape)}: it must be ({packed.shape[0]},), as packed has"
        )
    width, exact = packed.shape[-1], packed.dtype in (torch.float32, torch.float64)
    fits = packed.device.type == "cpu" and exact and 0 < width <= WIDEST and width % GROUP == 0
    if fits and not is_transformed(packed):
        from seqattn.kernels.self_attention.cpu import self_attention_cpu

        return self_attention_cpu(packed, lengths)[0]
    return scaled_dot_product(packed, lengths)


def scaled_dot_product(packed: Tensor, lengths: Tensor | None) -> Tensor:
    """`self_attention` through torch."""
    if lengths is None:
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # (batch, heads, length, width) each
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    valid = torch.arange(packed.shape[1], device=packed.device) < lengths[:, None]  # (batch, length)
    query, key, value = packed.where(valid[..., None, None, None], 0).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None])
    return out.transpose(1, 2).where(valid[..., None, None], 0)
