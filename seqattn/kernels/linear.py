"""x W^T + b in float32 on a CPU through oneDNN, which uses the widest vectors of every processor.

MKL, behind `torch.nn.functional.linear`, keeps to half of them on processors of AMD: less than half as fast.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels.arguments import is_transformed

SMALLEST = 2**20
"""Multiplications below which the call would cost more than it gains."""


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        columns, of_x = grad.flatten(0, -2).t(), x.flatten(0, -2).t()
        grad_x = linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:  # the narrower factor first, which is faster
            narrow = len(columns) <= len(of_x)
            grad_weight = linear(columns, of_x) if narrow else linear(of_x, columns).t()
        return grad_x, grad_weight, columns.sum(1) if ctx.has_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` with its arguments and, but for rounding, its results.

    Args:
        x: (..., in). weight: (out, in). bias: (out,) or None.
    """
    if not _fits(x, weight, bias):
        return F.linear(x, weight, bias)
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # oneDNN is fast at these strides only
        weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()  # whose strides it ignores
    return _OneDnnLinear.apply(x.contiguous(), weight, bias)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if tracing or torch.is_autocast_enabled("cpu"):
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in given)
        and x.ndim > 1
        and weight.ndim == 2
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() * weight.shape[0] >= SMALLEST
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not is_transformed(*given)
    )
