"""Long series made from a seed, one at a time: which of two short patterns came first."""

import math

import torch
from torch import Tensor

CHANNELS = 2
PATTERN = 64  # steps
NOISE = 0.3


def patterns() -> Tensor:
    """(2, PATTERN, CHANNELS): a sweep from low to high frequency on both channels, and one from high to low."""
    time = torch.linspace(0, 1, PATTERN)
    window = torch.sin(math.pi * time)
    rising = torch.stack([torch.sin(2 * math.pi * (2 * time + 6 * time**2)), torch.cos(2 * math.pi * 4 * time)], dim=1)
    rising = rising * window[:, None]
    return torch.stack([rising, rising.flip(0, 1)])


def order_task(indices: list[int], length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Series (cases, length, CHANNELS) of noise that hold both patterns once, and which of them comes first, 0 or 1.

    Case i is the same whichever cases are asked for with it.
    """
    shapes, series, labels = patterns(), [], []
    for index in indices:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        x = NOISE * torch.randn(length, CHANNELS, generator=generator)
        label = int(torch.randint(2, (), generator=generator))
        # two places, at least a pattern apart
        free = length - 2 * PATTERN
        early, late = sorted(torch.randint(free + 1, (2,), generator=generator).tolist())
        x[early : early + PATTERN] += shapes[label]
        x[late + PATTERN : late + 2 * PATTERN] += shapes[1 - label]
        series.append(x)
        labels.append(label)
    return torch.stack(series), torch.tensor(labels)
