"""The arguments of a scan as the Triton kernels take them, and how a scan is cut into programs."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_TILE, BACKWARD_TILE = 8, 4
"""Steps of a tile: what a thread holds in registers at once, without states and with the states of every step."""

CHUNK = 8
"""Steps from one saved state to the next, about: 8 bytes per step and channel at 16 states."""

FUSED_WINDOW = 16
"""Longest window that is scanned within a chunk; longer ones take a pass of their own."""

CHANNELS = 32
"""Most channels of a program, one per thread of a warp. The kernels sum the gradients of B and C over them."""

ENOUGH_PROGRAMS = 1024
"""With fewer programs than this, runs are cut into segments until there are twice as many. A program is one warp, and a
large GPU holds about a thousand that use all registers."""


def chunk_length(window: int) -> int:
    """Steps from one saved state to the next: whole windows, if they are not long."""
    return CHUNK if window > FUSED_WINDOW else window * max(1, CHUNK // window)


@dataclass(frozen=True)
class Cut:
    """Runs of `run` steps, each cut into `per_run` segments of `segment` steps; `local`: the runs are windows."""

    run: int
    runs: int
    segment: int
    per_run: int
    local: bool

    @property
    def segments(self) -> int:
        """Segments of a sequence."""
        return self.runs * self.per_run


class Problem:
    """Shapes, tiles and tensors of one scan."""

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool,
        window: int, reverse: bool,
    ) -> None:  # fmt: skip
        self.batch, self.length, self.channels = u.shape
        self.groups, self.states = B.shape[2:]
        self.dtype = torch.promote_types(u.dtype, torch.float32)
        self.u, self.delta, self.D, self.z, self.bias = u, delta, D, z, delta_bias
        self.B, self.C = B.to(self.dtype), C.to(self.dtype)  # else every thread would convert all of B and C
        self.lengths, self.softplus, self.reverse = lengths, delta_softplus, reverse
        # (state, channels), times log2(e): the kernels compute 2^(Δ A)
        self.A = (A.T.to(self.dtype) * math.log2(math.e)).contiguous()
        self.initial = None if initial_state is None else self.by_state(initial_state)
        self.window, self.chunk, self.fused = window, chunk_length(window), window <= FUSED_WINDOW
        per_group = self.channels // self.groups
        self.BD = min(CHANNELS, triton.next_power_of_2(max(1, per_group)))
        self.tiles = self.groups * triton.cdiv(per_group, self.BD)

    def by_state(self, state: Tensor) -> Tensor:
        """(batch, channels, state) as (batch, state, channels), in the dtype of the arithmetic."""
        return state.to(self.dtype).transpose(1, 2).contiguous()

    def cut(self, local: bool = False) -> Cut:
        """Whole sequences, or, for the local pass of long windows, their windows."""
        run = min(self.window, self.length) if local else self.length
        runs = triton.cdiv(self.length, run) if local and run else 1
        programs = max(1, self.batch * runs * self.tiles)
        per_run = 1 if programs >= ENOUGH_PROGRAMS else triton.cdiv(2 * ENOUGH_PROGRAMS, programs)
        segment = max(1, triton.cdiv(triton.cdiv(run, per_run), self.chunk)) * self.chunk
        return Cut(run, runs, segment, max(1, triton.cdiv(run, segment)), local)

    def empty(self, *shape: int) -> Tensor:
        """Unwritten memory in the dtype of the arithmetic."""
        return self.u.new_empty(shape, dtype=self.dtype)

    def by_step(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for what kernels write at every valid step: 0 past the ends of the sequences, if they have lengths."""
        make = self.u.new_empty if self.lengths is None else self.u.new_zeros
        return make(shape, dtype=dtype or self.dtype)

    def constants(self, cut: Cut, gradient: bool) -> dict[str, Any]:
        """The kernels' common compile-time arguments, and the number of warps."""
        BN = triton.next_power_of_2(self.states)
        return {
            "SOFTPLUS": self.softplus,
            "REVERSE": self.reverse,
            "BACKWARDS": self.reverse != cut.local,
            "BT": BACKWARD_TILE if gradient else FORWARD_TILE,
            "BN": BN,
            "BD": self.BD,
            "ACC": tl.float64 if self.dtype == torch.float64 else tl.float32,
            "num_warps": min(8, max(1, BN // 16)),
        }

    def window_constants(self, cut: Cut, BT: int) -> dict[str, Any]:
        """Compile-time arguments about chunks and windows; windows end at multiples of BORDER steps of a tile."""
        window = self.window if self.fused else 1
        return {"LOCAL": cut.local, "WINDOW": window, "BORDER": math.gcd(window, BT), "CHUNK": self.chunk}
