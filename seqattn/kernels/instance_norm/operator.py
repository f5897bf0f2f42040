"""Instance normalisation and PReLU as a PyTorch operator: custom ops with fake and autograd registrations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register_instance_norm(
    name: str, forward: Callable[..., tuple[Tensor, Tensor]], backward: Callable[..., tuple[Tensor, ...]]
) -> Any:
    """Register `seqattn::instance_norm_prelu_NAME` and its backward; return the differentiable operator.

    Args:
        forward: from x, contiguous, weight, bias, slope and eps to out and, for the backward pass, (batch, channels,
            2), the mean of each instance and 1 / sqrt(variance + eps).
        backward: from the gradient of out, contiguous, x, weight, bias, slope and these statistics to the gradients of
            x, weight, bias and slope.
    """
    norm = torch.library.custom_op(
        f"seqattn::instance_norm_prelu_{name}",
        mutates_args=(),
        schema="(Tensor x, Tensor weight, Tensor bias, Tensor slope, float eps) -> (Tensor, Tensor)",
    )(lambda x, *others: forward(x.contiguous(), *others))
    norm_backward = torch.library.custom_op(
        f"seqattn::instance_norm_prelu_{name}_backward",
        mutates_args=(),
        schema="(Tensor grad_out, Tensor x, Tensor weight, Tensor bias, Tensor slope, Tensor statistics) -> "
        "(Tensor, Tensor, Tensor, Tensor)",
    )(lambda grad_out, x, *others: backward(grad_out.contiguous(), x.contiguous(), *others))

    @norm.register_fake
    def _(x: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), x.new_empty(*x.shape[:2], 2)

    @norm_backward.register_fake
    def _(_grad_out: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in given[:4])

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:4], output[1])

    def differentiate(ctx: Any, grad_out: Tensor, _grad_statistics: Tensor) -> tuple[Tensor | None, ...]:
        return *norm_backward(grad_out, *ctx.saved_tensors), None

    norm.register_autograd(differentiate, setup_context=save)
    return norm
