"""SiLU of a depthwise convolution over the steps of (batch, length, channels), in either direction."""

import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels.arguments import is_transformed

FEWEST = 16
"""Channels from which the CPU kernel takes it."""


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False) -> Tensor:
    """out_t = SiLU(bias + Σ_k weight_k x_{t-(K-1)+k}); what lies outside the sequence is 0 (Mamba's convolution).

    On a CPU, from 16 channels on, a kernel of our own; everywhere else, and under the transforms of torch.func, torch's
    convolution. On a CPU half precision is computed in float32.

    Args:
        x: (batch, length, channels).
        weight: (channels, 1, K), as `nn.Conv1d` keeps it; cast to the dtype of x, as bias (channels,) is.
        reverse: x_{t+(K-1)-k} instead: what a flip before and after gives.

    Returns:
        (batch, length, channels), of the dtype of x.
    """
    if x.device.type != "cpu":
        return convolution(x, weight, bias, reverse)
    wide = torch.promote_types(x.dtype, torch.float32)  # oneDNN's half-precision convolution does not always end
    given = x.to(wide), weight.to(wide), None if bias is None else bias.to(wide), reverse
    if x.shape[2] < FEWEST or is_transformed(x, weight):
        return convolution(*given).to(x.dtype)
    from seqattn.kernels.causal_conv.cpu import causal_conv_silu_cpu

    return causal_conv_silu_cpu(*given).to(x.dtype)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """`causal_conv_silu` through torch."""
    length, taps = x.shape[1], weight.shape[2]
    if 0 in x.shape:  # which conv2d refuses, or never ends with
        return x
    kernel = (weight.flip(2) if reverse else weight).to(x.dtype)[:, :, None]  # (channels, 1, 1, K)
    image = x.transpose(1, 2)[:, :, None]  # (batch, channels, 1, length): as it lies in memory, channels last
    bias = None if bias is None else bias.to(x.dtype)
    out = F.conv2d(image, kernel, bias, padding=(0, taps - 1), groups=weight.shape[0])[:, :, 0].transpose(1, 2)
    return F.silu(out[:, taps - 1 :] if reverse else out[:, :length])
