"""Lengths to masks: the one place where padding is told from data."""

import torch
from torch import Tensor


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """Return (batch, steps) booleans, True where the step lies inside its sequence.

    lengths: (batch,) integers, valid steps per sequence.
    """
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def masked_mean(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Mean of `x` over `dim`, counting only entries where `mask` (broadcastable to `x`) is True; 0 where none is."""
    if mask is None:
        return x.mean(dim)
    weights = mask.to(x.dtype)
    return (x * weights).sum(dim) / weights.sum(dim).clamp_min(1)


def binned_mean(x: Tensor, lengths: Tensor | None, bins: int) -> Tensor:
    """Means over `bins` equal parts of each sequence: (batch, length, channels) -> (batch, bins, channels).

    lengths: (batch,), None means all steps. A part without a step, of a sequence shorter than `bins`, is 0.
    """
    steps = torch.arange(x.shape[1], device=x.device)
    ends = torch.full((1,), x.shape[1], device=x.device) if lengths is None else lengths
    part = (steps * bins) // ends[:, None]  # (batch or 1, length), >= bins past the end
    member = (part[:, None] == torch.arange(bins, device=x.device)[:, None]).to(x.dtype)  # (batch or 1, bins, length)
    return (member @ x) / member.sum(-1, keepdim=True).clamp_min(1)


def masked_max(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Maximum of `x` over `dim` where `mask` (broadcastable to `x`) is True; a large negative number where none is."""
    if mask is not None:
        x = x.masked_fill(~mask, torch.finfo(x.dtype).min)
    return x.amax(dim)
