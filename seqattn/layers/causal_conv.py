"""The short depthwise convolution in front of a selective scan, in the scan's layout and in either direction."""

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False) -> Tensor:
    """Depthwise convolution over the steps of (batch, length, channels); what lies outside the sequence is 0.

    out_t = bias + Σ_k weight_k x_{t-(K-1)+k}, or x_{t+(K-1)-k} with `reverse`: what a flip before and after it gives.

    Args:
        weight: (channels, 1, K), as `nn.Conv1d` keeps it; cast to the dtype of x, as bias (channels,) is.
    """
    length, taps = x.shape[1], weight.shape[2]
    if length == 0:  # which conv2d refuses
        return x
    kernel = (weight.flip(2) if reverse else weight).to(x.dtype)[:, :, None]  # (channels, 1, 1, K)
    image = x.transpose(1, 2)[:, :, None]  # (batch, channels, 1, length): as it lies in memory, channels last
    bias = None if bias is None else bias.to(x.dtype)
    added = bias if torch.is_grad_enabled() else None  # a convolution's own bias gradient is slow on a CPU
    out = F.conv2d(image, kernel, bias if added is None else None, padding=(0, taps - 1), groups=weight.shape[0])
    out = out[:, :, 0].transpose(1, 2)
    out = out[:, taps - 1 :] if reverse else out[:, :length]
    return out if added is None else out + added
