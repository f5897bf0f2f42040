"""Fused time attention as a PyTorch operator: custom ops with fake and autograd registrations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def register_time_attention(name: str, forward: Forward, backward: Backward) -> Any:
    """Register `seqattn::time_attention_NAME` and its backward; return the differentiable operator.

    Args:
        forward: takes the arguments of `time_attention_reference`, of any strides, and returns, contiguous and in
            float64 or float32: out; the sum of the weights of each channel's observations; and the score that these
            weights are relative to. All are (batch, queries, heads, channels).
        backward: from the gradient of out, the arguments of the forward pass, its results and whether the gradient of
            values is wanted to the gradients of query, key and values, in the shapes and dtypes of these, that of
            values 0 where nothing was observed; an empty tensor for values where it is not wanted.
    """
    attend = torch.library.custom_op(f"seqattn::time_attention_{name}", mutates_args=(), schema=FORWARD_SCHEMA)(forward)
    attend_backward = torch.library.custom_op(
        f"seqattn::time_attention_{name}_backward", mutates_args=(), schema=BACKWARD_SCHEMA
    )(backward)

    @attend.register_fake
    def _(query: Tensor, key: Tensor, values: Tensor, _mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (key.shape[0], query.shape[0], query.shape[1], values.shape[2])
        dtype = torch.promote_types(query.dtype, torch.float32)
        out, normaliser, base = (query.new_empty(shape, dtype=dtype) for _ in range(3))
        return out, normaliser, base

    @attend_backward.register_fake
    def _(_grad_out: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        query, key, values = (tensor.new_empty(tensor.shape) for tensor in arguments[:3])
        return query, key, values if arguments[-1] else values.new_empty(0)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output)

    def differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[:3]
        with torch.autocast(grad_out.device.type, enabled=False):
            grads = attend_backward(grad_out, *ctx.saved_tensors, needed[2])
        return *(grad if needs else None for grad, needs in zip(grads, needed, strict=True)), None

    attend.register_autograd(differentiate, setup_context=save)
    return attend


_ARGUMENTS = "Tensor query, Tensor key, Tensor values, Tensor mask"
FORWARD_SCHEMA = f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
BACKWARD_SCHEMA = (
    f"(Tensor grad_out, {_ARGUMENTS}, Tensor out, Tensor normaliser, Tensor base, bool wants_values) -> "
    "(Tensor, Tensor, Tensor)"
)
