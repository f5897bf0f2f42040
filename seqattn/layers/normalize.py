"""Per-channel standardisation that travels with the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seqattn.layers.masking import length_mask


class ChannelNormalizer(nn.Module):
    """(x - mean) / std per channel; missing values (NaN) become the mean, steps past the end become 0.

    mean, std: one number a channel, of the training data.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (batch, length, channels) with NaN where missing; lengths: (batch,)."""
        x = ((x - self.mean) / self.std).nan_to_num(nan=0.0)
        return x.masked_fill(~length_mask(lengths, x.shape[1])[..., None], 0)
