"""Self-attention as a PyTorch operator: custom ops with fake and autograd registrations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register_self_attention(
    name: str, forward: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], backward: Callable[..., Tensor]
) -> Any:
    """Register `seqattn::self_attention_NAME` and its backward; return the differentiable operator.

    Args:
        forward: from packed, contiguous, and lengths to out (batch, length, heads, width) and, for the backward pass,
            log2 Σ e^score of every query, (batch, heads, length).
        backward: from the gradient of out, contiguous, packed, lengths and both results to the gradient of packed.
    """
    attend = torch.library.custom_op(
        f"seqattn::self_attention_{name}",
        mutates_args=(),
        schema="(Tensor packed, Tensor? lengths) -> (Tensor, Tensor)",
    )(lambda packed, lengths: forward(packed.contiguous(), lengths))
    attend_backward = torch.library.custom_op(
        f"seqattn::self_attention_{name}_backward",
        mutates_args=(),
        schema="(Tensor grad_out, Tensor packed, Tensor? lengths, Tensor out, Tensor normaliser) -> Tensor",
    )(lambda grad_out, packed, *kept: backward(grad_out.contiguous(), packed.contiguous(), *kept))

    @attend.register_fake
    def _(packed: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, _, heads, width = packed.shape
        return packed.new_empty(batch, length, heads, width), packed.new_empty(batch, heads, length)

    @attend_backward.register_fake
    def _(_grad_out: Tensor, packed: Tensor, *_kept: Any) -> Tensor:
        return packed.new_empty(packed.shape)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    def differentiate(ctx: Any, grad_out: Tensor, _grad_normaliser: Tensor) -> tuple[Tensor, None]:
        return attend_backward(grad_out, *ctx.saved_tensors), None

    attend.register_autograd(differentiate, setup_context=save)
    return attend
