"""Fused WERSA attention as a PyTorch operator: custom ops with fake and autograd registrations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, ...]]


def register_wersa(name: str, forward: Forward, backward: Backward) -> Any:
    """Register `seqattn::wersa_attention_NAME` and its backward; return the differentiable operator.

    Args:
        forward: takes the arguments of `wersa_attention_reference`, of any strides, and returns, contiguous, out; the
            sum of each query's weights, (batch, heads, length), before eps; Σ phi(k) [v, 1]ᵀ over all tokens, (batch,
            heads, features, value_dim + 1); and what the exponents of keys are relative to: (batch, heads, 1), of
            causal attention (batch, heads, length), of "relu" (batch, heads, 0). All are float32, or float64 for
            float64, out too: gradients of q and k are small differences, which a rounded out would drown.
        backward: from the gradient of out, the arguments of the forward pass, its results and whether gradients of
            the projections are wanted to the gradients of q, k, v, gains, proj_q, proj_k, bandwidth, in the shapes
            and dtypes of these; empty tensors for what was None or is not wanted.
    """
    attend = torch.library.custom_op(f"seqattn::wersa_attention_{name}", mutates_args=(), schema=FORWARD_SCHEMA)(
        forward
    )
    attend_backward = torch.library.custom_op(
        f"seqattn::wersa_attention_{name}_backward", mutates_args=(), schema=BACKWARD_SCHEMA
    )(backward)

    @attend.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, v, proj, feature_map, causal = (arguments[index] for index in (0, 2, 4, 9, 10))
        batch, heads, length, value_dim = v.shape
        maxima = 0 if feature_map == "relu" else length if causal else 1
        kind = q.new_empty(0, dtype=torch.promote_types(q.dtype, torch.float32))
        return (
            kind.new_empty(v.shape), kind.new_empty(batch, heads, length),
            kind.new_empty(batch, heads, proj.shape[1], value_dim + 1), kind.new_empty(batch, heads, maxima),
        )  # fmt: skip

    @attend_backward.register_fake
    def _(_grad_out: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        wanted = [tensor is not None for tensor in arguments[:7]]
        wanted[4:6] = [given and arguments[-1] for given in wanted[4:6]]
        return tuple(
            tensor.new_empty(tensor.shape) if gives else arguments[0].new_empty(0)
            for tensor, gives in zip(arguments[:7], wanted, strict=True)
        )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:8], *output)
        ctx.options = inputs[8:]
        ctx.wants_proj = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]

    def differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Any, ...]:
        inputs, results = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        with torch.autocast(grad_out.device.type, enabled=False):
            grads = attend_backward(grad_out, *inputs, *ctx.options, *results, ctx.wants_proj)
        needed = [
            grad if tensor is not None and needs else None
            for tensor, grad, needs in zip(inputs[:7], grads, ctx.needs_input_grad[:7], strict=True)
        ]
        return *needed, None, None, None, None, None

    attend.register_autograd(differentiate, setup_context=save)
    return attend


_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor gains, Tensor proj_q, Tensor? proj_k, Tensor? bandwidth, Tensor? lengths, "
    "int levels, str feature_map, bool causal, float eps"
)
FORWARD_SCHEMA = f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)"
BACKWARD_SCHEMA = (
    f"(Tensor grad_out, {_ARGUMENTS}, Tensor out, Tensor normaliser, Tensor sums, Tensor log_max, bool wants_proj) -> "
    f"({', '.join(['Tensor'] * 7)})"
)
