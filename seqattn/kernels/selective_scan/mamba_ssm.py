"""The selective scan by the CUDA kernel of the package mamba-ssm, where that is installed and asked for."""

from typing import Any

import torch
from torch import Tensor

from seqattn.kernels.selective_scan.reference import selective_scan_reference

LARGEST_STATE = 256
NO_STEP = -1e4
"""A delta whose softplus is 0 in float32, and which float16 can hold."""


def selective_scan_mamba_ssm(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool, window: int,
    reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `selective_scan_reference`, but of window 1, without initial state and float64.

    The package's layout is (batch, channels, length): everything is copied into it, and `reverse` and `lengths` are
    expressed by gathering. B and C are rounded to u's dtype. It has no operator torch.compile knows.

    Raises:
        ValueError: window > 1, an initial state, float64 or more than 256 states, which the package does not have.
        RuntimeError: in the backward pass, where the last state has a gradient: the package would leave it out.
    """
    _check_supported(u, A, initial_state, window)
    if u.numel() == 0:  # a grid the kernel cannot be launched on
        return selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, delta_softplus, window, reverse
        )
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    sequences = [u, delta, B, C] if z is None else [u, delta, B, C, z]
    if lengths is not None:
        lengths = lengths.clamp(0, u.shape[1])
        if delta_bias is not None and not delta_softplus:
            sequences[1], delta_bias = (delta + delta_bias).to(u.dtype), None
        valid = torch.arange(u.shape[1], device=u.device) < lengths[:, None]  # (batch, length)
        no_step = NO_STEP if delta_softplus else 0.0
        fills = [0.0, no_step, 0.0, 0.0, 0.0]
        sequences = [_fill(tensor, valid, fill) for tensor, fill in zip(sequences, fills, strict=False)]
    if reverse:
        sequences = [_flip(tensor, lengths) for tensor in sequences]
    # (batch, channels, length); B and C (batch, groups, state, length)
    u, delta, B, C, *gate = (tensor.to(u.dtype).movedim(1, -1) for tensor in sequences)
    D, delta_bias = (None if vector is None else vector.float() for vector in (D, delta_bias))
    out, last = selective_scan_fn(
        u, delta, A.float(), B, C, D, gate[0] if gate else None, delta_bias, delta_softplus, return_last_state=True
    )
    out = out.mT
    if reverse:
        out = _flip(out, lengths)
    return (out if lengths is None else _fill(out, valid, 0.0)), _WithoutGradient.apply(last)


def _check_supported(u: Tensor, A: Tensor, initial_state: Tensor | None, window: int) -> None:
    if window > 1:
        problem = f"window is {window}, the package has window 1 only"
    elif initial_state is not None:
        problem = "there is an initial state, the package starts from 0 only"
    elif u.dtype == torch.float64:
        problem = "u is float64, the package takes float32, bfloat16 and float16"
    elif A.shape[1] > LARGEST_STATE:
        problem = f"A has {A.shape[1]} states, the package takes {LARGEST_STATE} at most"
    else:
        return
    raise ValueError(f'selective_scan: backend "mamba_ssm" cannot do this: {problem}; use "triton" or "reference"')


def _fill(tensor: Tensor, valid: Tensor, value: float) -> Tensor:
    """(batch, length, ...) with `value` where `valid` (batch, length) is False."""
    return tensor.where(valid.reshape(*valid.shape, *[1] * (tensor.ndim - 2)), value)


def _flip(tensor: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, length, ...) with every sequence flipped at its own length."""
    if lengths is None:
        return tensor.flip(1)
    steps = torch.arange(tensor.shape[1], device=tensor.device)
    place = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return tensor.gather(1, place.reshape(*place.shape, *[1] * (tensor.ndim - 2)).expand_as(tensor))


class _WithoutGradient(torch.autograd.Function):
    """The identity, which refuses a gradient: the package's backward pass would silently ignore it."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return state.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError(
            'selective_scan: backend "mamba_ssm" has no gradient of the last state; use "triton" instead'
        )
