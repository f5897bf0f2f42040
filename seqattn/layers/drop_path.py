"""Stochastic depth (arXiv:1603.09382)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, a residual branch becomes 0 with probability `rate`, per sequence, else grows by 1/(1 - rate).

    rate: in [0, 1).

    Raises:
        ValueError: the rate is out of range.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"DropPath: rate is {rate}, it must lie in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, ...)."""
        if self.rate == 0 or not self.training:
            return x
        kept = torch.rand(x.shape[:1], device=x.device) >= self.rate
        scale = kept.to(x.dtype) / (1 - self.rate)
        return x * scale.view(-1, *[1] * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
