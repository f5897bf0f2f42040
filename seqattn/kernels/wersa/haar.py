"""The orthonormal Haar wavelet transform along one axis, of any length, in plain PyTorch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def haar_transform(x: Tensor, levels: int, dim: int = -2) -> list[Tensor]:
    """Coefficients [detail 1 (finest), …, detail `levels` (coarsest), approximation] of x along `dim`.

    Coefficient j of level l covers steps [j 2^l, (j + 1) 2^l), as if zeros followed the end of x: its axis has
    ceil(length / 2^l) entries. One step is a_j = (x_2j + x_2j+1) / √2, c_j = (x_2j - x_2j+1) / √2, repeated on a.

    Raises:
        ValueError: levels is below 1.
    """
    if levels < 1:
        raise ValueError(f"haar_transform: levels is {levels}: it must be at least 1")
    approximation, details = x.movedim(dim, -1), []
    for _ in range(levels):
        pairs = F.pad(approximation, (0, approximation.shape[-1] % 2)).unflatten(-1, (-1, 2))
        even, odd = pairs.unbind(-1)
        details.append((even - odd) / math.sqrt(2))
        approximation = (even + odd) / math.sqrt(2)
    return [band.movedim(-1, dim) for band in (*details, approximation)]


def inverse_haar_transform(coefficients: Sequence[Tensor], length: int, dim: int = -2) -> Tensor:
    """The first `length` steps of what has these coefficients, in the order of `haar_transform`.

    Raises:
        ValueError: there are fewer than two bands, or their sizes are not those of a transform of `length` steps.
    """
    *details, approximation = (band.movedim(dim, -1) for band in coefficients)
    sizes = [-(-length // 2**level) for level in range(1, len(details) + 1)]
    found = [band.shape[-1] for band in (*details, approximation)]
    if not details or found != [*sizes, sizes[-1]]:
        raise ValueError(
            f"inverse_haar_transform: the bands have {found} coefficients: for {length} steps and {len(details)} "
            f"levels they must have {[*sizes, *sizes[-1:]]}"
        )
    for detail in reversed(details):
        approximation = approximation[..., : detail.shape[-1]]
        pairs = torch.stack([approximation + detail, approximation - detail], dim=-1) / math.sqrt(2)
        approximation = pairs.flatten(-2)
    return approximation[..., :length].movedim(-1, dim)
