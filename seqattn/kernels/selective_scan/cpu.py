"""The fused selective scan on a CPU: one task per sequence and block of channels, a vector of channels at a time.

A task walks its sequence in chunks. In a chunk it goes through the states one by one, each with a sweep over the steps
against the order of the scan (the windows' look-ahead) and one in order, the running state in registers; what is kept
per step and channel fits into the cache. The backward pass starts every chunk from its saved entry state.
"""

import math

import numpy as np
import torch
from torch import Tensor

from seqattn.kernels.numba_support import run_tasks
from seqattn.kernels.numba_vector import LANES
from seqattn.kernels.selective_scan.cpu_backward import backward_tasks
from seqattn.kernels.selective_scan.cpu_forward import forward_tasks
from seqattn.kernels.selective_scan.operator import register_scan

CHUNK = 64
"""Steps of a chunk, about: the entry states then take 1/4 of the memory of u at 16 states."""

TASKS = 64
"""Fewest backward tasks worth having; fixed, so that results do not depend on the number of threads."""


def chunk_length(window: int) -> int:
    """Steps of a chunk: whole windows."""
    return window * max(1, CHUNK // window)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool, window: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out, last state and chunk states; see `register_scan`."""
    problem = _Problem(u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, window)
    out = torch.empty_like(u, dtype=problem.dtype)
    last = out.new_empty(u.shape[0], u.shape[2], A.shape[1])
    chunks = out.new_empty(u.shape[0], problem.chunks, A.shape[1], u.shape[2])
    options = (delta_softplus, problem.window, reverse, problem.chunk)
    outputs = (out.numpy(), last.numpy(), chunks.numpy())
    run_tasks(forward_tasks, (*problem.arrays, *options, *outputs), problem.batch * problem.groups * problem.blocks)
    return out.to(u.dtype), last, chunks


def backward(
    grad_out: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None,
    delta_softplus: bool, window: int, reverse: bool, chunks: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; see `register_scan`."""
    problem = _Problem(u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, window)
    (batch, length, channels), state = u.shape, A.shape[1]
    empty = chunks.new_empty
    grad_u, grad_delta = empty(u.shape), empty(u.shape)
    grad_z = empty(u.shape if z is not None else (0, 0, 0))
    grad_initial = empty(batch, channels, state)
    # blocks of one part follow each other and add to the same grad_B and grad_C; parts are summed at the end
    parts = min(problem.blocks, max(1, -(-TASKS // max(1, batch * problem.groups))))
    grad_B, grad_C = (empty(parts, batch, length, problem.groups, state) for _ in range(2))
    grad_A = empty(batch, state, channels)
    grad_D, grad_bias = empty(batch, channels), empty(batch, channels)
    options = (delta_softplus, problem.window, reverse, problem.chunk, parts)
    inputs = (grad_out.to(problem.dtype).numpy(), grad_last.numpy(), chunks.numpy())
    gradients = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial)
    arrays = tuple(tensor.numpy() for tensor in gradients)
    run_tasks(backward_tasks, (*problem.arrays, *options, *inputs, *arrays), batch * problem.groups * parts)
    sums = (grad_u, grad_delta, grad_A.sum(0).T, grad_B.sum(0), grad_C.sum(0), grad_D.sum(0), grad_z, grad_bias.sum(0))
    return tuple(
        u.new_empty(0) if given is None else gradient.to(given.dtype).contiguous()
        for given, gradient in zip(
            (u, delta, A, B, C, D, z, delta_bias, initial_state), (*sums, grad_initial), strict=True
        )
    )


class _Problem:
    """The arguments as the kernels take them: NumPy arrays of one floating type, zeros or empty for what is None."""

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, window: int,
    ) -> None:  # fmt: skip
        self.batch, length, channels = u.shape
        self.groups = B.shape[2]
        self.blocks = -(-(channels // self.groups) // LANES)  # of one group
        self.window = max(1, min(window, length))
        self.chunk = chunk_length(self.window)
        self.chunks = -(-length // chunk_length(window))
        self.dtype = torch.promote_types(u.dtype, torch.float32)
        zeros = torch.zeros(channels, dtype=self.dtype)
        self.arrays = (
            *(tensor.to(self.dtype).numpy() for tensor in (u, delta)),
            (A.T.to(self.dtype) * math.log2(math.e)).contiguous().numpy(),
            *(tensor.to(self.dtype).numpy() for tensor in (B, C)),
            (zeros if D is None else D.to(self.dtype)).numpy(),
            (u.new_empty(0, 0, 0, dtype=self.dtype) if z is None else z.to(self.dtype)).numpy(),
            (zeros if delta_bias is None else delta_bias.to(self.dtype)).numpy(),
            (
                u.new_zeros(self.batch, channels, A.shape[1], dtype=self.dtype)
                if initial_state is None else initial_state.to(self.dtype)
            ).numpy(),
            np.full(self.batch, length) if lengths is None else lengths.to(torch.int64).clamp(0, length).numpy(),
        )  # fmt: skip


selective_scan_cpu = register_scan("cpu", forward, backward, chunk_length)
