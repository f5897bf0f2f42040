"""The arguments of one Triton call, and the launches over its tensors."""
# mypy: disallow-untyped-defs=False

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqattn.kernels.wersa import triton_causal, triton_features
from seqattn.kernels.wersa.reference import TINY

TILE, FEATURES, PART = 64, 128, 1024
"""Tokens of a tile, features of a block, and tokens that a program sums at least."""
PROGRAMS = 264
"""Programs that keep a large GPU busy: two for each of its multiprocessors."""


class Side(NamedTuple):
    """Filtered queries or keys with what they carry."""

    x: Tensor  # (batch, heads, length, dim)
    proj: Tensor  # (dim, features), scaled
    ref: Tensor | None  # (batch, heads, length)
    rows: Tensor  # (batch, heads, length, value_dim)
    last: Tensor  # (batch, heads, length)
    norm: bool  # whether the exponents hold the norm: those of keys


class Problem:
    """What all kernels of a call share."""

    def __init__(
        self, q: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None, bandwidth: Tensor | None,
        lengths: Tensor | None, feature_map: str, eps: float,
    ) -> None:  # fmt: skip
        self.batch, self.heads, self.length, self.dim = q.shape
        self.values, self.features = v.shape[3], proj_q.shape[1]
        self.exponential, self.eps = feature_map == "exp", eps
        self.acc = torch.promote_types(q.dtype, torch.float32)
        # sums of many float16 products overflow: only bfloat16 stays half precision beyond the first product
        self.kind = torch.bfloat16 if q.dtype == torch.bfloat16 else self.acc
        full = torch.full((self.batch,), self.length, device=q.device)
        self.ends = full if lengths is None else lengths.to(torch.int64).clamp(0, self.length)
        steps = torch.arange(self.length, device=q.device)
        self.valid = (steps < self.ends[:, None])[:, None].expand(-1, self.heads, -1)  # (batch, heads, length)
        self.ragged = lengths is not None
        self.bandwidth = (
            torch.ones((), dtype=self.acc, device=q.device) if bandwidth is None else bandwidth.to(self.acc)
        )
        self.scale = (1.0 if self.exponential else self.features**-0.5) / self.bandwidth
        self.proj_q = (proj_q * self.scale).to(q.dtype).contiguous()
        self.proj_k = self.proj_q if proj_k is None else (proj_k * self.scale).to(q.dtype).contiguous()
        gains = gains.to(self.acc) if gains.ndim == 3 else gains.to(self.acc)[:, None].expand(-1, self.length, -1)
        self.gains = (
            gains.masked_fill(~self.valid[:, 0, :, None], 0).contiguous() if self.ragged else gains.contiguous()
        )

    def blank(self, x: Tensor) -> Tensor:
        """x (batch, heads, length[, …]), contiguous, with zeros past the ends."""
        if self.ragged:
            x = x.masked_fill(~(self.valid if x.ndim == 3 else self.valid[..., None]), 0)
        return x.contiguous()

    def weight(self, normaliser: Tensor) -> Tensor:
        """The divisor, from the sum of the weights."""
        return normaliser.clamp_min(TINY) if self.exponential else normaliser + self.eps

    def maxima(self, x: Tensor, proj: Tensor, norm: bool) -> Tensor:
        """Largest exponent of every token, (batch, heads, length); -inf past the ends."""
        out = self._empty()
        self._launch(
            triton_features.maximum_kernel, (self._rows, triton.cdiv(self.length, TILE)), x, proj, out, self.length,
            self.dim, self.features, self.bandwidth, self._log_count, NORM=norm, values=False,
        )  # fmt: skip
        return out.masked_fill(~self.valid, -math.inf)

    def sums(self, side: Side, ref: Tensor | None = None, part: int | None = None) -> Tensor:
        """Σ phi [rows, last], (parts, batch, heads, features, value_dim + 1); ref in place of the side's."""
        part = self.part() if part is None else part
        parts = max(1, triton.cdiv(self.length, part))
        out = side.last.new_empty(parts, self.batch, self.heads, self.features, self.values + 1)
        self._launch(
            triton_features.sum_kernel, (self._rows, self._blocks, parts), side.x, side.proj,
            side.ref if ref is None else ref, side.rows, side.last, self.ends, out, self.heads, self.length, self.dim,
            self.features, self.values, part, self.bandwidth, self._log_count, NORM=side.norm,
        )  # fmt: skip
        return out

    def read(self, side: Side, sums: Tensor) -> tuple[Tensor, Tensor]:
        """phi · sums: (batch, heads, length, value_dim), (batch, heads, length)."""
        rows, last = self._empty(self.values), self._empty()
        self._launch(
            triton_features.read_kernel, (self._rows, triton.cdiv(self.length, TILE)), side.x, side.proj, side.ref,
            sums, self.ends, rows, last, self.heads, self.length, self.dim, self.features, self.values, self.bandwidth,
            self._log_count, NORM=side.norm,
        )  # fmt: skip
        return rows, last

    def gradient(self, side: Side, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of side.x, and per token of the bandwidth, where sums [rows, last]ᵀ is the gradient of phi."""
        grad, band = self._empty(self.dim), self._empty()
        self._launch(
            triton_features.gradient_kernel, (self._rows, triton.cdiv(self.length, TILE)), side.x, side.proj, side.ref,
            side.rows, side.last, sums, self.ends, grad, band, self.heads, self.length, self.dim, self.features,
            self.values, self.bandwidth, self._log_count, NORM=side.norm,
        )  # fmt: skip
        return grad, band

    def proj_gradient(self, side: Side, sums: Tensor) -> Tensor:
        """The gradient of the projection, (dim, features)."""
        out = side.last.new_empty(self._rows, self.dim, self.features)
        self._launch(
            triton_features.proj_kernel, (self._rows, self._blocks), side.x, side.proj, side.ref, side.rows, side.last,
            sums, self.ends, out, self.heads, self.length, self.dim, self.features, self.values, self.bandwidth,
            self._log_count, NORM=side.norm,
        )  # fmt: skip
        return out.sum(0) * self.scale

    def causal(
        self, own: Side, other: Side, nu: Tensor | None, entry: Tensor, entry_nu: Tensor, part: int, *, reverse: bool,
        gradient: bool, proj: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """What own tokens read of others, or their gradients; see `causal_kernel`."""
        width = self.dim if gradient else self.values
        shape = (self._blocks, self.batch, self.heads, self.length)
        out, last = entry.new_empty(*shape, width), entry.new_empty(shape)
        parts = entry.shape[0]
        of_proj = entry.new_empty(parts if proj else 0, self._rows, self.dim, self.features)
        self._launch(
            triton_causal.causal_kernel, (self._rows, self._blocks, parts), own.x, own.proj, own.ref, own.rows,
            own.last, other.x, other.proj, other.ref, other.rows, other.last, nu, entry, entry_nu, self.ends, out, last,
            of_proj, self.heads, self.length, self.dim, self.features, self.values, part, self.bandwidth,
            self._log_count, GRADIENT=gradient, PROJ=proj, REVERSE=reverse,
        )  # fmt: skip
        return out.sum(0), last.sum(0), of_proj.sum((0, 1)) * self.scale

    def part(self) -> int:
        """Tokens that one program sums: fewer where there are few sequences and heads."""
        wanted = triton.cdiv(PROGRAMS, max(1, self._rows * self._blocks))
        tokens = max(PART, triton.cdiv(self.length, wanted))
        return triton.cdiv(tokens, TILE) * TILE

    @property
    def _rows(self) -> int:
        return self.batch * self.heads

    @property
    def _blocks(self) -> int:
        return triton.cdiv(self.features, FEATURES)

    @property
    def _log_count(self) -> float:
        return math.log(self.features) / 2

    def _empty(self, *width: int) -> Tensor:
        return torch.empty(self.batch, self.heads, self.length, *width, dtype=self.acc, device=self.ends.device)

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, values: bool = True, **constants: Any
    ) -> None:
        if math.prod(grid) == 0:
            return
        types = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
        if values:
            constants |= {"EXP": self.exponential, "KIND": types[self.kind], "BV": _power(self.values)}
        kernel[grid](
            *arguments, ACC=types[self.acc], BT=TILE, BD=_power(self.dim), BM=min(FEATURES, _power(self.features)),
            **constants,
        )  # fmt: skip


def _power(size: int) -> int:
    """A power of two that a matrix product takes."""
    return max(16, triton.next_power_of_2(size))
