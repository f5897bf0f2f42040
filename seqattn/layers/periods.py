"""Dominant periods of a set of series."""

from typing import Literal

import torch
from torch import Tensor

from seqattn.layers.masking import length_mask, masked_mean


def find_periods(
    x: Tensor,
    k: int = 5,
    method: Literal["official", "mean_power"] = "official",
    lengths: Tensor | None = None,
    merge_tolerance: float = 0.15,
) -> tuple[list[int], list[int]]:
    """Return the `k` strongest periods (in steps) of a data set and their integer frequency bins.

    Bin j of a series of T steps has period round(T / j), half to even; bins 0 and 1 (no or one period) never count.
    Ordered by falling strength; fewer than `k` are returned where a short series has fewer.

    Args:
        x: (cases, length, channels); 0 where a value is missing.
        k: how many periods at most.
        method: "official" takes the amplitude of the mean series over cases and channels and drops the top bin, as
            published (MPTSNet, arXiv:2503.05582; bins compared as integers). "mean_power" takes the mean power over
            cases of the standardised channels, so opposite phases do not cancel, and merges near-equal periods.
        lengths: (cases,) valid steps; None means all of them.
        merge_tolerance: with "mean_power", a period within this fraction of a stronger one is not kept.
    """
    if x.dim() != 3 or x.shape[0] == 0:
        raise ValueError(f"find_periods: x has shape {tuple(x.shape)}, it must be (cases, length, channels)")
    if k < 1:
        raise ValueError(f"find_periods: k is {k}, it must be at least 1")
    mask = None if lengths is None else length_mask(lengths, x.shape[1])[..., None]
    if method == "official":
        strength = _amplitude_of_mean(x.double(), mask)
    elif method == "mean_power":
        strength = _mean_power(x.double(), mask)
    else:
        raise ValueError(f"find_periods: unknown method {method!r}; use 'official' or 'mean_power'")
    tolerance = merge_tolerance if method == "mean_power" else 0.0
    return _pick(strength, x.shape[1], k, tolerance)


def _amplitude_of_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    series = masked_mean(x, mask, 0).mean(-1)  # (length,)
    return torch.fft.rfft(series).abs()[: x.shape[1] // 2]


def _mean_power(x: Tensor, mask: Tensor | None) -> Tensor:
    centred = x - masked_mean(x, mask, 1)[:, None, :]
    steps = torch.full((len(x), 1, 1), x.shape[1], dtype=x.dtype, device=x.device)
    if mask is not None:
        centred = centred * mask
        steps = mask.sum(1, keepdim=True).clamp_min(1).to(x.dtype)
    variance = centred.square().sum((0, 1), keepdim=True) / steps.sum()  # (1, 1, channels)
    scaled = centred / variance.sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    power = torch.fft.rfft(scaled, dim=1).abs().square() / steps
    return power.mean((0, 2))  # (length // 2 + 1,)


def _pick(strength: Tensor, length: int, k: int, tolerance: float) -> tuple[list[int], list[int]]:
    periods: list[int] = []
    bins: list[int] = []
    for index in torch.argsort(strength[2:], descending=True, stable=True).tolist():
        period = round(length / (index + 2))
        if period not in periods and all(abs(period - kept) > tolerance * kept for kept in periods):
            periods.append(period)
            bins.append(index + 2)
        if len(periods) == k:
            break
    return periods, bins
