"""The fused selective scan on a CPU: one task per sequence and block of channels, a vector of channels at a time.

A task walks its sequence in chunks. In a chunk it goes through the states a few at a time, with their running values in
registers in sweeps over the steps: in order, for the windows' look-ahead and for gradients against it. What is kept per
step and channel fits into the cache. The backward pass starts every chunk from its saved entry state. Windows longer
than a chunk take a local pass of their own: each is scanned from its other end, and the main pass adds what it read.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels.numba_support import run_tasks
from seqattn.kernels.numba_vector import LANES
from seqattn.kernels.selective_scan import cpu_backward, cpu_forward
from seqattn.kernels.selective_scan.cpu_tiles import Problem
from seqattn.kernels.selective_scan.operator import register_scan, saved_chunks

CHUNK = 64
"""Most steps of a chunk: at 16 states the saved entry states take a quarter of the memory of u."""

TASKS = 32
"""Fewest backward tasks worth having; fixed, so that results do not depend on the number of threads."""


def chunk_length(window: int) -> int:
    """Steps of a chunk: whole windows where they fit."""
    return CHUNK // window * window if window <= CHUNK else CHUNK


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool, window: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out, last state and chunk states; see `register_scan`."""
    arguments = (u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, delta_softplus, window, reverse)
    others = _scan(_local_problem(*arguments))[0] if window > CHUNK else None
    out, last, chunks = _scan(_problem(*arguments), others)
    return out.to(u.dtype), last, chunks


def backward(
    grad_out: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None,
    delta_softplus: bool, window: int, reverse: bool, chunks: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; see `register_scan`."""
    arguments = (u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, delta_softplus, window, reverse)
    grad_out = grad_out.to(chunks.dtype)
    others, local_gradients = None, None
    if window > CHUNK:
        local = _local_problem(*arguments)
        others, _, local_chunks = _scan(local)
        before_gate = grad_out if z is None else grad_out * F.silu(z.to(grad_out.dtype))
        local_gradients = _scan_gradients(local, None, before_gate, torch.zeros_like(grad_last), local_chunks)
    gradients = _scan_gradients(_problem(*arguments), others, grad_out, grad_last, chunks)
    if local_gradients is not None:
        for index in (0, 1, 2, 3, 4, 7):  # all but D, z and the initial state, which only the main pass reads
            gradients[index] += local_gradients[index]
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return tuple(
        u.new_empty(0) if tensor is None else gradient.to(tensor.dtype).contiguous()
        for tensor, gradient in zip(given, gradients, strict=True)
    )


def _problem(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool, window: int,
    reverse: bool,
) -> Problem:  # fmt: skip
    batch, length, channels = u.shape
    dtype = torch.promote_types(u.dtype, torch.float32)
    zeros = torch.zeros(channels, dtype=dtype)
    if initial_state is None:
        initial_state = zeros.new_zeros(batch, channels, A.shape[1])
    return Problem(
        u=u.to(dtype).numpy(),
        delta=delta.to(dtype).numpy(),
        A=(A.T.to(dtype) * math.log2(math.e)).contiguous().numpy(),
        B=B.to(dtype).numpy(),
        C=C.to(dtype).numpy(),
        D=(zeros if D is None else D.to(dtype)).numpy(),
        z=(zeros.new_empty(0, 0, 0) if z is None else z.to(dtype)).numpy(),
        bias=(zeros if delta_bias is None else delta_bias.to(dtype)).numpy(),
        initial=initial_state.to(dtype).numpy(),
        ends=np.full(batch, length) if lengths is None else lengths.to(torch.int64).clamp(0, length).numpy(),
        softplus=delta_softplus,
        window=window if window <= CHUNK else 1,
        reverse=reverse,
        local=False,
        run=max(1, length),
        chunk=chunk_length(window),
    )


def _local_problem(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool, window: int,
    reverse: bool,
) -> Problem:  # fmt: skip
    """The local pass of long windows."""
    whole = _problem(u, delta, A, B, C, None, None, delta_bias, None, lengths, delta_softplus, window, reverse)
    return whole._replace(local=True, run=max(1, min(window, u.shape[1])))


def _scan(problem: Problem, others: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """out, (batch, length, channels), last state and chunk states; others: what the local pass adds to out."""
    (batch, length, channels), (groups, states) = problem.u.shape, problem.B.shape[2:]
    kind = torch.from_numpy(problem.u)
    out, last = torch.empty_like(kind), kind.new_empty(batch, channels, states)
    runs, run_chunks = -(-length // problem.run), -(-problem.run // problem.chunk)
    kept = runs * run_chunks if problem.local else saved_chunks(length, problem.chunk)
    chunks = kind.new_empty(batch, kept, states, channels)
    others = kind.new_empty(0, 0, 0) if others is None else others
    scratch = kind.new_empty(cpu_forward.scratch_size(states, min(problem.chunk, length)))
    arguments = (problem, others.numpy(), out.numpy(), last.numpy(), chunks.numpy())
    tasks = batch * groups * _blocks(channels // groups)
    run_tasks(cpu_forward.forward_tasks, arguments, scratch, tasks)
    return out, last, chunks


def _scan_gradients(
    problem: Problem, others: Tensor | None, grad_out: Tensor, grad_last: Tensor, chunks: Tensor
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state."""
    (batch, length, channels), (groups, states), empty = problem.u.shape, problem.B.shape[2:], chunks.new_empty
    # the blocks of a part follow each other and add to the same gradients of B and C; parts are summed at the end
    parts = min(_blocks(channels // groups), -(-TASKS // max(1, batch * groups)))
    u, delta, z = empty(problem.u.shape), empty(problem.u.shape), empty(problem.z.shape)
    A, (B, C) = empty(batch, states, channels), (empty(parts, batch, length, groups, states) for _ in range(2))
    D, bias, initial = empty(batch, channels), empty(batch, channels), empty(batch, channels, states)
    gradients = cpu_backward.Gradients(*(tensor.numpy() for tensor in (u, delta, A, B, C, D, z, bias, initial)))
    others = empty(0, 0, 0) if others is None else others
    scratch = empty(cpu_backward.scratch_size(states, min(problem.chunk, length)))
    arguments = (problem, parts, others.numpy(), grad_out.numpy(), grad_last.numpy(), chunks.numpy(), gradients)
    run_tasks(cpu_backward.backward_tasks, arguments, scratch, batch * groups * parts)
    return [u, delta, A.sum(0).T, B.sum(0), C.sum(0), D.sum(0), z, bias.sum(0), initial]


def _blocks(count: int) -> int:
    return -(-count // LANES)


selective_scan_cpu = register_scan("cpu", forward, backward, chunk_length)
