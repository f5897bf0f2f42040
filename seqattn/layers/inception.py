"""Inception convolution with CBAM gates over short segments (MPTSNet, arXiv:2503.05582, local extractor).

Six parallel kernels that are averaged are one 11-tap convolution, and a convolution over channels-last segments is one
matrix product; both are exact. Tensors are (batch, segments, steps, channels).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.kernels.linear import linear
from seqattn.layers.masking import masked_max, masked_mean

KERNEL_SIZES = (1, 3, 5, 7, 9, 11)


def gather_taps(x: Tensor, taps: int) -> Tensor:
    """(..., steps, channels) -> (..., steps, taps * channels): each step with its zero-padded neighbours, tap-major."""
    return _GatherTaps.apply(x, taps)


def scatter_taps(x: Tensor, taps: int) -> Tensor:
    """(..., steps, taps * channels) -> (..., steps, channels): output t sums tap k of step t - k + taps // 2.

    The adjoint of `gather_taps`.
    """
    return _ScatterTaps.apply(x, taps)


class _GatherTaps(torch.autograd.Function):
    """Autograd through the slices would allocate the whole padded tensor once a tap; the adjoint is one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: int) -> Tensor:
        ctx.taps = taps
        steps, radius = x.shape[-2], taps // 2
        x = F.pad(x, (0, 0, radius, radius))
        return torch.cat([x[..., tap : tap + steps, :] for tap in range(taps)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        taps = ctx.taps
        return _ScatterTaps.apply(grad, taps), None


class _ScatterTaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: int) -> Tensor:
        ctx.taps = taps
        steps, radius, channels = x.shape[-2], taps // 2, x.shape[-1] // taps
        out = x[..., radius * channels : (radius + 1) * channels].clone()
        for tap in range(taps):
            shift = radius - tap
            target = slice(max(0, -shift), steps - max(0, shift))
            source = slice(max(0, shift), steps + min(0, shift))
            if shift and abs(shift) < steps:
                out[..., target, :] += x[..., source, tap * channels : (tap + 1) * channels]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        taps = ctx.taps
        return _GatherTaps.apply(grad, taps), None


class _MeanOfKernels(torch.autograd.Function):
    """Mean of centred kernels of 1, 3, 5, ... taps on their leading axis; each one's gradient is a slice."""

    @staticmethod
    def forward(ctx: Any, *kernels: Tensor) -> Tensor:
        taps = kernels[-1].shape[0]
        total = kernels[-1].clone()
        for kernel in kernels[:-1]:
            edge = (taps - kernel.shape[0]) // 2
            total[edge : taps - edge] += kernel
        return total / len(kernels)  # not div_: torch.compile loses the gradient of a tensor changed in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        taps = grad.shape[0]
        edges = [(taps - size) // 2 for size in KERNEL_SIZES]
        return tuple(grad[edge : taps - edge] / len(KERNEL_SIZES) for edge in edges)


class InceptionConv(nn.Module):
    """Mean of six "same" convolutions with kernels 1, 3, ..., 11, computed as one 11-tap convolution.

    The six kernels stay separate parameters, so weights, weight decay and optimiser state are those of the published
    model. They are stored as the factors of a matrix product: (size, in, out) where channels grow, and where they
    shrink (size, out, in) with the taps in reverse order. Initialised Kaiming-normal (fan-out, ReLU), biases zero.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.grows = in_channels <= out_channels
        shape = (in_channels, out_channels) if self.grows else (out_channels, in_channels)
        self.kernels = nn.ParameterList([torch.empty(size, *shape) for size in KERNEL_SIZES])
        self.biases = nn.ParameterList([torch.zeros(out_channels) for _ in KERNEL_SIZES])
        for kernel, size in zip(self.kernels, KERNEL_SIZES, strict=True):
            nn.init.normal_(kernel, std=math.sqrt(2 / (out_channels * size)))

    def fused(self) -> tuple[Tensor, Tensor]:
        """The equivalent 11-tap kernel, stored as `kernels` are, and its bias (out,)."""
        return _MeanOfKernels.apply(*self.kernels), torch.stack(list(self.biases)).mean(0)

    def forward(self, segments: Sequence[Tensor]) -> list[Tensor]:
        """Convolve several sets of segments, each (batch, n, steps, in_channels), in one matrix product."""
        kernel, bias = self.fused()
        longest = max(x.shape[-2] for x in segments)
        crop = max(0, kernel.shape[0] // 2 - (longest - 1))  # taps further out see padding only
        kernel = kernel[crop : kernel.shape[0] - crop]
        taps, matrix = kernel.shape[0], kernel.flatten(0, 1)
        if self.grows:
            return self._product([gather_taps(x, taps) for x in segments], matrix.t(), bias)
        return [scatter_taps(x, taps) + bias for x in self._product(segments, matrix, None)]

    @staticmethod
    def _product(tensors: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        rows = torch.cat([x.flatten(0, -2) for x in tensors])
        parts = linear(rows, weight, bias).split([x.shape[:-1].numel() for x in tensors])
        return [part.unflatten(0, x.shape[:-1]) for part, x in zip(parts, tensors, strict=True)]


class CBAM(nn.Module):
    """Channel gate, then position gate, over each segment (Woo et al. 2018, arXiv:1807.06521)."""

    position_taps = 7

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        reduced = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, reduced, bias=False)
        self.excite = nn.Linear(reduced, channels, bias=False)
        self.position = nn.Parameter(torch.empty(2, self.position_taps))  # rows: mean, max over channels
        nn.init.normal_(self.squeeze.weight, std=math.sqrt(2 / reduced))
        nn.init.normal_(self.excite.weight, std=math.sqrt(2 / channels))
        nn.init.normal_(self.position, std=math.sqrt(2 / self.position_taps))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Gate `x`; pools skip steps where `mask` is False.

        x: (batch, segments, steps, channels); mask: broadcastable to (batch, segments, steps), no segment all False.
        Returns the gated x, the channel gate (batch, segments, channels) and the position gate (batch, segments,
        steps).
        """
        expanded = None if mask is None else mask[..., None]
        pools = torch.stack([masked_mean(x, expanded, -2), masked_max(x, expanded, -2)])  # (2, B, n, channels)
        channel_gate = self.excite(F.relu(self.squeeze(pools))).sum(0).sigmoid()
        x = x * channel_gate[..., None, :]
        profile = torch.stack([x.mean(-1), x.amax(-1)], dim=-1)  # (B, n, steps, 2)
        position_gate = (gather_taps(profile, self.position_taps) @ self.position.t().reshape(-1)).sigmoid()
        return x * position_gate[..., None], channel_gate, position_gate


class SegmentExtractor(nn.Module):
    """Residual two-layer Inception + CBAM network on each segment, shared by all segments: S + IC2(GELU(IC1(S)))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.expand_gate = InceptionConv(channels, hidden), CBAM(hidden)
        self.reduce, self.reduce_gate = InceptionConv(hidden, channels), CBAM(channels)

    def forward(
        self, segments: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Extract from one set of segments a period, each (batch, segments, period, channels) with its mask.

        Returns for each the segments and the last CBAM's channel and position gates.
        """
        hidden = [self.expand_gate(x, mask)[0] for x, mask in zip(self.expand(segments), masks, strict=True)]
        reduced = self.reduce([F.gelu(x) for x in hidden])
        gated = [self.reduce_gate(x, mask) for x, mask in zip(reduced, masks, strict=True)]
        return [(x + out, *gates) for x, (out, *gates) in zip(segments, gated, strict=True)]

    @staticmethod
    def parameter_count(channels: int, hidden: int) -> int:
        """Number of trainable parameters, without building the module."""
        convolutions = 2 * sum(KERNEL_SIZES) * channels * hidden + len(KERNEL_SIZES) * (channels + hidden)
        gates = sum(2 * width * max(1, width // 16) + 2 * CBAM.position_taps for width in (channels, hidden))
        return convolutions + gates
