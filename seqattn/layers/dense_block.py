"""Convolutions over (batch, channels, frames, bins) images in which clips may have unequal numbers of frames."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.kernels.arguments import is_transformed
from seqattn.kernels.instance_norm import instance_norm_prelu


class InstanceNorm(nn.Module):
    """Normalise each channel of each clip over its valid frames and all bins, then scale and shift the channel.

    Biased variance, no running statistics: training and evaluation are the same. channels: of the input.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, channels, frames, bins). mask: (batch, 1, frames, 1), True at valid frames, None means all."""
        if mask is None:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        count = mask.sum(2, keepdim=True).clamp_min(1) * x.shape[3]
        mean = x.where(mask, 0).sum((2, 3), keepdim=True) / count
        centred = (x - mean).where(mask, 0)
        variance = centred.square().sum((2, 3), keepdim=True) / count
        scale = (variance + self.eps).rsqrt() * self.weight[:, None, None]
        return torch.addcmul(self.bias[:, None, None], centred, scale)


def norm_prelu(x: Tensor, norm: InstanceNorm, act: nn.PReLU, mask: Tensor | None = None) -> Tensor:
    """act(norm(x, mask)), 0 where the mask is False; act: of one slope a channel."""
    if mask is None:
        return instance_norm_prelu(x, norm.weight, norm.bias, act.weight, norm.eps)
    return act(norm(x, mask)).where(mask, 0)


class ConvUnit(nn.Module):
    """A convolution, instance normalisation and PReLU; the output is 0 past a clip's end, as its padding is.

    conv: a 2-d convolution that keeps the number of frames. channels: that it gives.
    """

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, InstanceNorm(channels), nn.PReLU(channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, in channels, frames, bins), 0 where mask (batch, 1, frames, 1) is False."""
        return norm_prelu(self.conv(x), self.norm, self.act, mask)


class DenseBlock(nn.Module):
    """Convolutions of 3 frames x 3 bins at dilations 1, 2, 4, ... in time, each on the outputs of all before it.

    (batch, channels, frames, bins) -> the same shape, the last convolution's output (arXiv:2305.13686, section II).
    """

    def __init__(self, channels: int, depth: int = 4) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            ConvUnit(
                nn.Conv2d((i + 1) * channels, channels, 3, padding=(2**i, 1), dilation=(2**i, 1)),
                channels,
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, channels, frames, bins), 0 where mask (batch, 1, frames, 1) is False."""
        if torch.is_grad_enabled() or is_transformed(x):
            for unit in self.units[:-1]:
                x = torch.cat([unit(x, mask), x], dim=1)  # the newest first
            return self.units[-1](x, mask)
        size = x.shape[1]
        first = size * (len(self.units) - 1)
        outputs = x.new_empty(len(x), first + size, *x.shape[2:])  # filled from its end: every output is copied once
        outputs[:, first:] = x
        for unit in self.units[:-1]:
            outputs[:, first - size : first] = unit(outputs[:, first:], mask)
            first -= size
        return self.units[-1](outputs, mask)
