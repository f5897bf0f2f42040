"""A Mamba from left to right and one from right to left."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqattn.layers.mamba import Mamba


class BidirectionalMamba(nn.Module):
    """(batch, length, d_model) -> the same shape with "add", (batch, length, 2 * d_model) with "concat".

    Args:
        combine: whether the outputs of the two directions are added, or concatenated with left to right first.
        shared: whether both directions have the same parameters.
        options: of `Mamba`, by name.

    Raises:
        ValueError: combine is another word.
    """

    def __init__(
        self, d_model: int, *, combine: Literal["add", "concat"] = "add", shared: bool = False, **options: Any
    ) -> None:
        super().__init__()
        if combine not in ("add", "concat"):
            raise ValueError(f'BidirectionalMamba: combine is {combine!r}: it must be "add" or "concat"')
        self.combine = combine
        self.mixers = nn.ModuleList(Mamba(d_model, **options) for _ in range(1 if shared else 2))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x: (batch, length, d_model); lengths: (batch,) valid steps per sequence. Padding gives 0, changes nothing."""
        both = self.mixers[0](x, lengths), self.mixers[-1](x, lengths, reverse=True)
        return both[0] + both[1] if self.combine == "add" else torch.cat(both, dim=-1)
