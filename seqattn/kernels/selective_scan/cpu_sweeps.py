"""Gradients of one state over a chunk: the closed form of LBMamba's gradients (docs/kernels/selective_scan.md).

With g = C · (gradient of out before the gate), per channel and state:

    lambda_t = g_t + a_{t+1} lambda_{t+1}      over the whole sequence, against the order of the scan
    mu_t     = g_t + a_{t-1} mu_{t-1}          inside t's window, in order
    tau_t    = lambda_t + a_{t-1} mu_{t-1}     gradient of b_t
    q_t      = lambda_t a_t h_{t-1} + mu_t l_t gradient of log a_t
"""

from typing import Any

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, exp2, exp2_near, load, load_broadcast, store


@jit
def replay(
    step: Any, rate: Any, near: bool, x: Any, B: Any, C: Any, stride: int, steps: int, own: bool, h: Any,
    gated: bool, a: Any, ah: Any, y: Any,
) -> None:  # fmt: skip
    """`scan_state` again, keeping a and a_t h_{t-1}; y only for a gate."""
    for s in range(steps):
        at, at_B = s * LANES, s * stride
        size = load(step, at)
        transition = exp2_near(size, rate) if near else exp2(size * rate)
        decayed = transition * h
        h = decayed + load(x, at) * load_broadcast(B, at_B)
        store(a, at, transition)
        store(ah, at, decayed)
        if gated:
            store(y, at, load(y, at) + (h if own else decayed) * load_broadcast(C, at_B))


@jit
def replay_looking(
    a: Any, look: Any, x: Any, g: Any, B: Any, C: Any, stride: int, steps: int, window: int, zero: Any,
    h: Any, gated: bool, ah: Any, entering: Any, y: Any,
) -> None:  # fmt: skip
    """`replay` after `look_ahead`: keeps a_t h_{t-1} and a_{t-1} mu_{t-1}; for a gate, y += C (h + look)."""
    for start in range(0, steps, window):
        from_left = zero
        for s in range(start, min(start + window, steps)):
            at, at_B = s * LANES, s * stride
            transition, c = load(a, at), load_broadcast(C, at_B)
            decayed = transition * h
            h = decayed + load(x, at) * load_broadcast(B, at_B)
            store(ah, at, decayed)
            store(entering, at, from_left)
            from_left = transition * (load(g, at) * c + from_left)
            if gated:
                store(y, at, load(y, at) + (h + load(look, at)) * c)


@jit
def gradients(
    A: Any, step: Any, x: Any, g: Any, B: Any, C: Any, stride: int, steps: int, own: bool, a: Any,
    ah: Any, carry: Any, rate_sum: Any, into_b: Any, into_step: Any, for_B: Any, for_C: Any,
) -> Any:  # fmt: skip
    """The sweep against the order: returns a_0 lambda_0 and rate_sum plus the sum of step q.

    carry: a_{t+1} lambda_{t+1} from beyond the chunk. Adds B tau to into_b and A q to into_step; for_B and for_C become
    what each channel gives to the gradients of B and C.
    """
    for s in range(steps - 1, -1, -1):
        at, at_B = s * LANES, s * stride
        b = load_broadcast(B, at_B)
        g_t, x_t, ah_t = load(g, at), load(x, at), load(ah, at)
        lam = g_t * load_broadcast(C, at_B) + carry
        tau = lam if own else carry
        carry = load(a, at) * lam
        q = lam * ah_t
        rate_sum = rate_sum + load(step, at) * q
        store(into_b, at, load(into_b, at) + b * tau)
        store(into_step, at, load(into_step, at) + A * q)
        store(for_B, at, tau * x_t)
        store(for_C, at, g_t * (ah_t + x_t * b if own else ah_t))
    return carry, rate_sum


@jit
def gradients_looking(
    A: Any, step: Any, x: Any, g: Any, B: Any, C: Any, stride: int, steps: int, a: Any, ah: Any, look: Any,
    entering: Any, carry: Any, rate_sum: Any, into_b: Any, into_step: Any, for_B: Any, for_C: Any,
) -> Any:  # fmt: skip
    """`gradients` with windows."""
    for s in range(steps - 1, -1, -1):
        at, at_B = s * LANES, s * stride
        b = load_broadcast(B, at_B)
        g_t, x_t, ah_t, look_t, from_left = load(g, at), load(x, at), load(ah, at), load(look, at), load(entering, at)
        read = g_t * load_broadcast(C, at_B)
        lam = read + carry
        carry = load(a, at) * lam
        tau = lam + from_left
        q = lam * ah_t + (read + from_left) * look_t
        rate_sum = rate_sum + load(step, at) * q
        store(into_b, at, load(into_b, at) + b * tau)
        store(into_step, at, load(into_step, at) + A * q)
        store(for_B, at, tau * x_t)
        store(for_C, at, g_t * (ah_t + x_t * b + look_t))
    return carry, rate_sum
