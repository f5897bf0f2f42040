"""One state over short windows, each unrolled: transitions and look-ahead of a window never leave the registers."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, Lanes, advance, element, near_exp2, row, write


def _scan_windows_of(window: int) -> Any:
    """`look_ahead` and `scan_state_looking` over whole windows, where every |step A log2(e)| is at most NEAR."""

    def emit(builder: Any, step: Any, rate: Any, x: Any, B: Any, C: Any, stride: Any, h: Any, y: Any) -> Any:
        rate, h, places = Lanes(builder, rate), Lanes(builder, h), range(window)
        transitions = [near_exp2(row(builder, step, s), rate) for s in places]
        own = [row(builder, x, s) * element(builder, B, stride, s) for s in places]
        beyond: list[Lanes] = []  # what the window holds beyond each step but its last
        held = own[-1]
        for s in reversed(places[:-1]):
            beyond.insert(0, transitions[s] * held)
            held = beyond[0] + own[s]
        for s in places:
            h = transitions[s] * h + own[s]
            seen = h + beyond[s] if s < window - 1 else h
            write(builder, y, s, row(builder, y, s) + seen * element(builder, C, stride, s))
        return h.value

    @intrinsic
    def scan_window(
        typing_context: Any, step: Any, rate: Any, x: Any, B: Any, C: Any, stride: Any, h: Any, y: Any
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, *arguments)

        return h(step, rate, x, B, C, types.intp, h, y), generate

    @jit
    def scan_windows(step: Any, rate: Any, x: Any, B: Any, C: Any, stride: int, steps: int, h: Any, y: Any) -> Any:
        for s in range(0, steps, window):
            at, at_B = s * LANES, s * stride
            h = scan_window(
                advance(step, at), rate, advance(x, at), advance(B, at_B), advance(C, at_B), stride, h, advance(y, at)
            )
        return h

    return scan_windows


scan_windows_of_4, scan_windows_of_8 = _scan_windows_of(4), _scan_windows_of(8)
