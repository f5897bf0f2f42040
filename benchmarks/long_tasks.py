"""Long series made from a seed, one at a time: which of two short patterns came first."""

import math

import torch
from torch import Tensor

CHANNELS = 2
PATTERN = 64  # steps
SPACING = 512  # steps, on average, from one pattern to the next
NOISE = 1.0


def patterns() -> Tensor:
    """(2, PATTERN, CHANNELS): a sweep from low to high frequency, and the same backwards with its channels swapped."""
    time = torch.linspace(0, 1, PATTERN)
    sweep = torch.stack([torch.sin(2 * math.pi * (2 * time + 6 * time**2)), torch.cos(8 * math.pi * time)], dim=1)
    sweep = sweep * torch.sin(math.pi * time)[:, None]
    return torch.stack([sweep, sweep.flip(0, 1)])


def order_task(indices: list[int], length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Series (cases, length, CHANNELS) of noise, and which pattern comes first in them, 0 or 1.

    Half of the occurrences, at random places, are of the one pattern and the later half of the other, so that what
    they are says nothing and only their order counts. Case i is the same whichever cases are asked for with it.
    """
    shapes, series, labels = patterns(), [], []
    for index in indices:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        x = NOISE * torch.randn(length, CHANNELS, generator=generator)
        label = int(torch.randint(2, (), generator=generator))
        places = length // PATTERN
        count = max(2, length // SPACING // 2 * 2)
        chosen = torch.randperm(places, generator=generator)[:count].sort().values
        for rank, place in enumerate(chosen.tolist()):
            x[place * PATTERN : (place + 1) * PATTERN] += shapes[label if rank < count // 2 else 1 - label]
        series.append(x)
        labels.append(label)
    return torch.stack(series), torch.tensor(labels)
