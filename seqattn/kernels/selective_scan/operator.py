"""A fused selective scan as a PyTorch operator: custom ops with fake and autograd registrations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Forward = Callable[..., tuple[Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, ...]]


def saved_chunks(length: int, chunk: int) -> int:
    """Chunk states kept of a sequence; never 0 or 1, which would tie torch.export to a range of lengths."""
    return length // chunk + 2


def register_scan(name: str, forward: Forward, backward: Backward, chunk_length: Callable[[int], int]) -> Any:
    """Register `seqattn::selective_scan_NAME` and its backward; return the differentiable operator.

    The operator takes the arguments of `selective_scan_reference` and returns out, the last state and the state at
    the start of every chunk of `chunk_length(window)` steps, (batch, saved_chunks, state, channels), for the backward
    pass.

    Args:
        forward: what `selective_scan_NAME` computes, on contiguous tensors.
        backward: from the gradients of out and last state, the arguments of the forward pass and the chunk states to
            the gradients of u, delta, A, B, C, D, z, delta_bias, initial_state, in the shapes and dtypes of these;
            empty tensors for what was None.
    """
    scan = torch.library.custom_op(f"seqattn::selective_scan_{name}", mutates_args=(), schema=FORWARD_SCHEMA)(
        lambda *arguments: forward(*_contiguous(arguments))
    )
    scan_backward = torch.library.custom_op(
        f"seqattn::selective_scan_{name}_backward", mutates_args=(), schema=BACKWARD_SCHEMA
    )(lambda *arguments: backward(*_contiguous(arguments)))

    @scan.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, A, window = arguments[0], arguments[2], arguments[11]
        (batch, length, channels), state = u.shape, A.shape[1]
        dtype = torch.promote_types(u.dtype, torch.float32)
        chunks = u.new_empty(batch, saved_chunks(length, chunk_length(window)), state, channels, dtype=dtype)
        return u.new_empty(u.shape), u.new_empty(batch, channels, state, dtype=dtype), chunks

    @scan_backward.register_fake
    def _(_grad_out: Tensor, _grad_last: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(
            arguments[0].new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in arguments[:9]
        )

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:10], output[2])
        ctx.options = inputs[10:]
        ctx.set_materialize_grads(True)

    def differentiate(ctx: Any, grad_out: Tensor, grad_last: Tensor, _grad_chunks: Tensor) -> tuple[Any, ...]:
        *tensors, chunks = ctx.saved_tensors
        grads = scan_backward(grad_out, grad_last, *tensors, *ctx.options, chunks)
        given = [None if tensor is None else grad for tensor, grad in zip(tensors[:9], grads, strict=True)]
        return *given, None, None, None, None

    scan.register_autograd(differentiate, setup_context=save)
    return scan


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? lengths, bool delta_softplus, SymInt window, bool reverse"
)
FORWARD_SCHEMA = f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
BACKWARD_SCHEMA = f"(Tensor grad_out, Tensor grad_last, {_ARGUMENTS}, Tensor chunks) -> ({', '.join(['Tensor'] * 9)})"


def _contiguous(arguments: tuple[Any, ...]) -> list[Any]:
    return [argument.contiguous() if isinstance(argument, Tensor) else argument for argument in arguments]
