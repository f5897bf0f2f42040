"""The wavelet filter of WERSA on a CPU, and its adjoint: a block of tokens at a time, in the cache."""

from typing import Any

import torch
from torch import Tensor

from seqattn.kernels.numba_support import run_tasks
from seqattn.kernels.numba_vector import LANES
from seqattn.kernels.wersa import cpu_aligned, cpu_undecimated

ROWS = 64
"""Fewest tokens of a block."""


class Filter:
    """The filter of one call: its gains, and where sequences end.

    The aligned filter works on windows of whole blocks of `block` tokens, or up to the end; the causal one on any, and
    its adjoint needs the gradients of the `halo` tokens after the window, too.

    Args:
        gains: (batch, length, levels + 1) or (batch, levels + 1). ends: (batch,) int64. dtype: of the arithmetic.
    """

    def __init__(self, gains: Tensor, ends: Tensor, length: int, causal: bool, dtype: torch.dtype) -> None:
        self.ends, self.shape, self.causal = ends, gains.shape, causal
        levels = gains.shape[-1] - 1
        gains = gains.to(dtype) if gains.ndim == 3 else gains.to(dtype)[:, None].expand(-1, length, -1)
        self.folding = _folding(levels, length, dtype)
        self.gains = (gains if self.folding is None else gains @ self.folding).contiguous()
        self.received = torch.zeros_like(self.gains)
        self.levels = self.gains.shape[-1] - 1
        rows_of = cpu_undecimated.rows_of if causal else cpu_aligned.rows_of
        self.block, self.scratch_rows = rows_of(self.levels, ROWS)
        self.halo = 2**self.levels - 1 if causal else 0

    def apply(self, x: Tensor, target: Tensor, start: int = 0) -> None:
        """target = the filtered tokens of x from `start` on, 0 past the ends, where nothing is read.

        x: (batch, heads, length, dim). target: (batch, heads, window, dim). Both contiguous.
        """
        kernel = cpu_undecimated.filter_blocks if self.causal else cpu_aligned.filter_blocks
        self._run(kernel, x, target, x, start, target.shape[2])

    def backward(self, grad: Tensor, x: Tensor, target: Tensor, start: int = 0, count: int | None = None) -> None:
        """`count` tokens of target from `start` on = the gradient of x, from that of what `apply` gave.

        grad: (batch, heads, window, dim), of these tokens, which None says are all, and the halo after them, or up to
        the end. What the gains receive is added to `received`.
        """
        kernel = cpu_undecimated.gradient_blocks if self.causal else cpu_aligned.gradient_blocks
        self._run(kernel, grad, target, x, start, grad.shape[2] if count is None else count)

    def gradient(self) -> Tensor:
        """What the gains have received, in their shape."""
        received = self.received if self.folding is None else self.received @ self.folding.T
        return received if len(self.shape) == 3 else received.sum(1)

    def _run(self, kernel: Any, source: Tensor, target: Tensor, x: Tensor, start: int, count: int) -> None:
        scratch = x.new_empty(self.scratch_rows * -(-x.shape[3] // LANES) * LANES)
        arrays = (tensor.numpy() for tensor in (source, target, x, self.gains, self.ends, self.received))
        run_tasks(kernel, (*arrays, start, count, self.block), scratch, x.shape[0] * -(-count // self.block))


def _folding(levels: int, length: int, dtype: torch.dtype) -> Tensor | None:
    """(levels + 1, reached + 1), or None: how levels whose one block outgrows the sequence act on its approximation.

    With nothing but zeros behind the sequence, and before it, each of them halves the mean and has it for a detail too.
    """
    reached = min(levels, max(1, (length - 1).bit_length()))
    if reached == levels:
        return None
    folding = torch.eye(levels + 1, reached + 1, dtype=dtype)
    for band in range(reached, levels + 1):
        folding[band, reached] = 2.0 ** (reached - min(band + 1, levels))
    return folding
