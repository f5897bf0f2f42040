"""From steps to tokens: a convolution whose stride is its kernel."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchEmbedding(nn.Module):
    """One token per `patch_size` steps: Conv1d with kernel and stride patch_size; patch_size 1 is pointwise.

    A last, partial patch is kept, with zeros for the steps it lacks. Weights are drawn from N(0, 1 / fan_in), biases
    are 0.

    Args:
        in_channels: of the series. d_model: channels of a token. patch_size: steps of a token, at least 1.

    Raises:
        ValueError: patch_size is below 1.
    """

    def __init__(self, in_channels: int, d_model: int, patch_size: int = 1) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"PatchEmbedding: patch_size is {patch_size}, it must be at least 1")
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(d_model, in_channels, patch_size))  # as Conv1d has it
        self.bias = nn.Parameter(torch.zeros(d_model))
        nn.init.normal_(self.weight, std=(in_channels * patch_size) ** -0.5)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens (batch, ceil(length / patch_size), d_model) and their number per sequence, ceil(lengths / patch_size).

        x: (batch, length, in_channels), 0 past each sequence's end. lengths: (batch,), or None for None.
        """
        if self.patch_size > 1:
            tokens = (x.shape[1] + self.patch_size - 1) // self.patch_size
            x = F.pad(x, (0, 0, 0, tokens * self.patch_size - x.shape[1]))
            x = x.unflatten(1, (tokens, self.patch_size)).flatten(2)
            lengths = None if lengths is None else (lengths + self.patch_size - 1) // self.patch_size
        # x: (batch, tokens, patch_size * in_channels)
        return F.linear(x, self.weight.transpose(1, 2).flatten(1), self.bias), lengths
