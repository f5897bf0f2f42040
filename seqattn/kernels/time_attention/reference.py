"""Time attention in plain PyTorch: the law that the kernels are tested against."""

import torch
from torch import Tensor


def time_attention_reference(query: Tensor, key: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return (out,), (batch, queries, heads, channels) in float64 for float64 and in float32 otherwise.

    The arguments are those of `time_attention`, checked, with a mask of bool that is False past the ends. One softmax a
    channel.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, values = query.to(dtype), values.to(dtype).where(mask, 0)
    key = key.to(dtype).where(mask.any(-1)[..., None, None], 0)
    scores = torch.einsum("qhd,blhd->bqhl", query, key) / query.shape[-1] ** 0.5
    if not scores.shape[-1]:
        return (scores.sum(-1, keepdim=True) * values.sum(1)[:, None, None],)
    channels = []
    for value, observed in zip(values.unbind(-1), mask[:, None, None].unbind(-1), strict=True):
        # finite, for channels that are never observed: their weights are even, and then 0
        weights = scores.masked_fill(~observed, torch.finfo(dtype).min).softmax(-1).where(observed, 0)
        channels.append(torch.einsum("bqhl,bl->bqh", weights, value))
    if not channels:
        return (scores[..., :0],)
    return (torch.stack(channels, dim=-1),)
