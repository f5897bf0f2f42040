"""The causal convolution as a PyTorch operator: custom ops with fake and autograd registrations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register_causal_conv(
    name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> Any:
    """Register `seqattn::causal_conv_silu_NAME` and its backward; return the differentiable operator.

    Args:
        forward: from x, contiguous, weight, bias or None, and reverse to out; see `causal_conv_silu`.
        backward: from the gradient of out, contiguous, and the arguments of the forward pass to the gradients of x,
            weight and bias; an empty one where there is no bias.
    """
    convolve = torch.library.custom_op(
        f"seqattn::causal_conv_silu_{name}", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor"
    )(lambda x, *others: forward(x.contiguous(), *others))
    convolve_backward = torch.library.custom_op(
        f"seqattn::causal_conv_silu_{name}_backward",
        mutates_args=(),
        schema=f"(Tensor grad_out, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    )(lambda grad_out, x, *others: backward(grad_out.contiguous(), x.contiguous(), *others))

    @convolve.register_fake
    def _(x: Tensor, *_others: Any) -> Tensor:
        return x.new_empty(x.shape)

    @convolve_backward.register_fake
    def _(_grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, _reverse: bool) -> tuple[Tensor, ...]:
        return x.new_empty(x.shape), weight.new_empty(weight.shape), x.new_empty(0 if bias is None else bias.shape)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.reverse = inputs[3]

    def differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        *given, bias = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = convolve_backward(grad_out, *given, bias, ctx.reverse)
        return grad_x, grad_weight, None if bias is None else grad_bias, None

    convolve.register_autograd(differentiate, setup_context=save)
    return convolve


_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, bool reverse"
