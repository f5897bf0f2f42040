"""PReLU of the instance normalisation of (batch, channels, …)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels.arguments import is_transformed

SMALLEST = 16
"""Elements of an instance from which the CPU kernel takes it."""


def instance_norm_prelu(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, eps: float = 1e-5) -> Tensor:
    """PReLU(weight (x - mean) / sqrt(variance + eps) + bias) with the mean and biased variance of each instance.

    On a CPU, in float32 and float64, one kernel of our own, which keeps nothing but x; everywhere else, and under the
    transforms of torch.func, torch's operators.

    Args:
        x: (batch, channels, …); an instance is a channel of a clip, of at least two elements.
        weight, bias, slope: (channels,), of the dtype of x; slope: of the PReLU below 0.

    Returns:
        The shape and dtype of x.
    """
    elements = x.shape[2:].numel()
    exact = x.dtype in (torch.float32, torch.float64) and x.dtype == weight.dtype == bias.dtype == slope.dtype
    if x.device.type == "cpu" and exact and elements >= SMALLEST and not is_transformed(x, weight, bias, slope):
        from seqattn.kernels.instance_norm.cpu import instance_norm_prelu_cpu

        return instance_norm_prelu_cpu(x, weight, bias, slope, eps)[0]
    return F.prelu(F.instance_norm(x, weight=weight, bias=bias, eps=eps), slope)
