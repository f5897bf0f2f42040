"""Gradients of a group of states over a chunk: the closed form of LBMamba's gradients (docs/kernels/selective_scan.md).

With g = C · (gradient of out before the gate), per channel and state:

    lambda_t = g_t + a_{t+1} lambda_{t+1}      over the whole sequence, against the order of the scan
    mu_t     = g_t + a_{t-1} mu_{t-1}          inside t's window, in order
    tau_t    = lambda_t + a_{t-1} mu_{t-1}     gradient of b_t
    q_t      = lambda_t a_t h_{t-1} + mu_t l_t gradient of log a_t
"""

from typing import Any

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, exp2, exp2_near, load, store
from seqattn.kernels.selective_scan.cpu_states import GROUP, add_lane_sums, add_products, each, load_each, load_like


@jit
def replay(
    step: Any, rates: Any, near: bool, x: Any, B: Any, C: Any, stride: int, steps: int, own: bool, h: Any,
    gated: bool, a: Any, ah: Any, y: Any,
) -> None:  # fmt: skip
    """`scan_states` again, keeping a and a_t h_{t-1}; y only for a gate."""
    for s in range(steps):
        at, at_B, at_a = s * LANES, s * stride, s * GROUP * LANES
        size = each(load(step, at), h)
        transition = exp2_near(size, rates) if near else exp2(size * rates)
        decayed = transition * h
        h = decayed + each(load(x, at), h) * load_each(B, at_B, h)
        store(a, at_a, transition)
        store(ah, at_a, decayed)
        if gated:
            store(y, at, add_products(load(y, at), h if own else decayed, load_each(C, at_B, h)))


@jit
def gradients(
    A: Any, step: Any, x: Any, g: Any, B: Any, C: Any, stride: int, steps: int, own: bool, a: Any, ah: Any,
    carry: Any, rate_sum: Any, into_b: Any, into_step: Any, grad_B: Any, grad_C: Any,
) -> Any:  # fmt: skip
    """The sweep against the order: returns a_0 lambda_0 and rate_sum plus the sum of step q.

    carry: a_{t+1} lambda_{t+1} from beyond the chunk. Adds B tau to into_b, A q to into_step, and what the channels
    give to the gradients of B and C.
    """
    for s in range(steps - 1, -1, -1):
        at, at_B, at_a = s * LANES, s * stride, s * GROUP * LANES
        g_t, x_t, b, ah_t = each(load(g, at), A), each(load(x, at), A), load_each(B, at_B, A), load_like(ah, at_a, A)
        lam = g_t * load_each(C, at_B, A) + carry
        tau = lam if own else carry
        carry = load_like(a, at_a, A) * lam
        q = lam * ah_t
        rate_sum = rate_sum + each(load(step, at), A) * q
        store(into_b, at, add_products(load(into_b, at), b, tau))
        store(into_step, at, add_products(load(into_step, at), A, q))
        add_lane_sums(grad_B, at_B, tau * x_t)
        add_lane_sums(grad_C, at_B, g_t * (ah_t + x_t * b if own else ah_t))
    return carry, rate_sum


@jit
def gradients_looking(
    A: Any, step: Any, x: Any, g: Any, B: Any, C: Any, stride: int, steps: int, window: int, zero: Any, gated: bool,
    a: Any, ah: Any, mu: Any, carry: Any, rate_sum: Any, into_b: Any, into_step: Any, y: Any, grad_B: Any,
    grad_C: Any,
) -> Any:  # fmt: skip
    """`gradients` with windows; mu takes one of them. For a gate, y += C l."""
    # in the order that needs fewest registers
    for start in range((steps - 1) // window * window, -1, -window):
        stop, transition, mu_t, k = min(start + window, steps), zero, zero, zero
        for s in range(start, stop):
            mu_t = transition * mu_t + each(load(g, s * LANES), A) * load_each(C, s * stride, A)
            transition = load_like(a, s * GROUP * LANES, A)
            store(mu, (s - start) * GROUP * LANES, mu_t)
        for s in range(stop - 1, start - 1, -1):
            at, at_B, at_a, at_mu = s * LANES, s * stride, s * GROUP * LANES, (s - start) * GROUP * LANES
            x_t, b, mu_t = each(load(x, at), A), load_each(B, at_B, A), load_like(mu, at_mu, A)
            tau = mu_t + carry
            store(into_b, at, add_products(load(into_b, at), b, tau))
            add_lane_sums(grad_B, at_B, tau * x_t)
            g_t, c = each(load(g, at), A), load_each(C, at_B, A)
            a_t, ah_t = load_like(a, at_a, A), load_like(ah, at_a, A)
            look = a_t * k
            k = look + x_t * b
            if gated:
                store(y, at, add_products(load(y, at), look, c))
            add_lane_sums(grad_C, at_B, g_t * (ah_t + k))
            lam = g_t * c + carry
            carry = a_t * lam
            q = lam * ah_t + mu_t * look
            rate_sum = rate_sum + each(load(step, at), A) * q
            store(into_step, at, add_products(load(into_step, at), A, q))
    return carry, rate_sum
