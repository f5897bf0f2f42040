"""Time attention as published (mTAND, arXiv:2101.10318): a softmax for every channel, for comparison."""

import math

import torch
from torch import Tensor


def plain_time_attention(query: Tensor, key: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """As `time_attention`, over scores (batch, heads, queries, length, channels); values are 0 where mask is."""
    query, key = query.transpose(0, 1), key.transpose(1, 2)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    scores = scores.unsqueeze(-1).repeat_interleave(values.shape[-1], dim=-1)
    scores = scores.masked_fill(mask[:, None, None] == 0, -10000)
    attention = torch.softmax(scores, dim=-2)
    return torch.sum(attention * values[:, None, None], dim=-2).transpose(1, 2)
