"""The selective scan on a GPU, in Triton.

Two schedules, chosen by shape: with many sequences and channels a program takes its channels through the whole
sequence; a few long sequences are cut into segments, scanned in parallel once what enters each is known
(triton_chunked). Short windows are scanned along with the sequence, chunk by chunk. Long ones take a local pass of
their own, a scan of each window from its other end, whose result the main pass adds. Nothing depends on the order in
which programs run: gradients that cross them are summed from parts.
"""

import torch
from torch import Tensor

from seqattn.kernels.selective_scan.operator import register_scan
from seqattn.kernels.selective_scan.triton_backward import Gradients, launch_backward
from seqattn.kernels.selective_scan.triton_chunked import enter_segments
from seqattn.kernels.selective_scan.triton_forward import launch_forward
from seqattn.kernels.selective_scan.triton_problem import Problem, chunk_length


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool, window: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out, last state and chunk states; see `register_scan`."""
    problem = Problem(u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, delta_softplus, window, reverse)
    with torch.cuda.device_of(u):
        local = None if problem.fused else _local_forward(problem)[0]
        cut = problem.cut()
        entry = enter_segments(problem, cut, problem.initial, u, problem.B, gradient=False)
        out, last, chunks = launch_forward(problem, cut, entry, local)
    return out, last.transpose(1, 2).contiguous(), chunks


def backward(
    grad_out: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None,
    delta_softplus: bool, window: int, reverse: bool, chunks: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; see `register_scan`."""
    problem = Problem(u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, delta_softplus, window, reverse)
    parts = problem.tiles // problem.groups  # of the gradients of B and C: one a channel tile and pass
    grad_B, grad_C = (problem.by_step(parts if problem.fused else 2 * parts, *B.shape) for _ in range(2))
    local = local_grads = None
    with torch.cuda.device_of(u):
        if not problem.fused:
            local, local_chunks = _local_forward(problem)
            cut = problem.cut(local=True)
            local_grads = Gradients(problem, cut, grad_B, grad_C, parts)
            carry = enter_segments(problem, cut, None, grad_out, problem.C, gradient=True)
            launch_backward(problem, cut, carry, local_chunks, grad_out, local_grads, None, None)
        cut = problem.cut()
        grads = Gradients(problem, cut, grad_B, grad_C, 0)
        carry = enter_segments(problem, cut, problem.by_state(grad_last), grad_out, problem.C, gradient=True)
        launch_backward(problem, cut, carry, chunks, grad_out, grads, local, local_grads)
    grad_A = grads.A.sum(0) if local_grads is None else grads.A.sum(0) + local_grads.A.sum(0)
    gradients = (
        *(grads.u, grads.delta, grad_A.T, grad_B.sum(0), grad_C.sum(0), grads.D.sum(0), grads.z, grads.bias.sum(0)),
        grads.initial.transpose(1, 2),
    )
    return tuple(
        u.new_empty(0) if given is None or gradient is None else gradient.to(given.dtype).contiguous()
        for given, gradient in zip((u, delta, A, B, C, D, z, delta_bias, initial_state), gradients, strict=True)
    )


def _local_forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """What later steps of long windows contribute to out before D and gate, and the chunk states of that scan."""
    cut = problem.cut(local=True)
    entry = enter_segments(problem, cut, None, problem.u, problem.B, gradient=False)
    out, _, chunks = launch_forward(problem, cut, entry, None)
    return out, chunks


selective_scan_triton = register_scan("triton", forward, backward, chunk_length)
