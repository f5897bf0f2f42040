"""What users call: the arguments are checked here, once for every backend."""

from numbers import Integral
from typing import Literal, NoReturn, overload

import torch
from torch import Tensor

from seqattn.kernels.arguments import check_float, check_kind, check_lengths, check_shape, check_tensors
from seqattn.kernels.backend import implementation

IMPLEMENTATIONS = {
    "reference": ("seqattn.kernels.selective_scan.reference", "selective_scan_reference"),
    "cpu": ("seqattn.kernels.selective_scan.cpu", "selective_scan_cpu"),
    "triton": ("seqattn.kernels.selective_scan.triton", "selective_scan_triton"),
    "mamba_ssm": ("seqattn.kernels.selective_scan.mamba_ssm", "selective_scan_mamba_ssm"),
}

LONGEST = 2**40
"""No sequence is longer; larger windows would not fit an int64."""


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, window: int = 1, reverse: bool = False,
    lengths: Tensor | None = None, initial_state: Tensor | None = None, return_last_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, window: int = 1, reverse: bool = False,
    lengths: Tensor | None = None, initial_state: Tensor | None = None, return_last_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, delta_softplus: bool = False, window: int = 1, reverse: bool = False,
    lengths: Tensor | None = None, initial_state: Tensor | None = None, return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Selective state-space scan, differentiable in every floating argument and never holding a (…, state) tensor.

    With Δ_t = softplus(delta_t + delta_bias), a_t = exp(Δ_t A), b_t = Δ_t B_t u_t, for every channel and state:

        h_t = a_t h_{t-1} + b_t                                  the state, over the whole sequence
        l_t = a_t (l_{t+1} + b_{t+1}) inside t's window, else 0  what later steps of the window contribute
        out_t = (Σ_n C_t (h_t + l_t) + D u_t) · SiLU(z_t)

    `window=1` is Mamba (arXiv:2312.00752, algorithm 2), where l is 0; `window=S` is LBMamba (arXiv:2506.15976), whose
    windows are steps [0, S), [S, 2S), …; `window >= length` sees the whole sequence from both sides.

    Args:
        u, delta, z: (batch, length, channels), one dtype: float64, float32, bfloat16 or float16.
        A: (channels, state), usually negative; a positive entry is allowed and makes its state grow.
        B, C: (batch, length, state), or (batch, length, groups, state): channel c uses group c // (channels / groups).
        D, delta_bias: (channels,), or None for 0. z: None for no gate.
        delta_softplus: whether softplus (threshold 20) is applied to delta + delta_bias.
        reverse: run from the right end to the left, as if every sequence were flipped at its own length and the
            output flipped back; windows are then counted from the right end.
        lengths: (batch,) integers in [0, length]. What lies past an end changes nothing; out is 0 there.
        initial_state: (batch, channels, state), the h before the first step, 0 for None.
        return_last_state: also return h after the last step, float64 for float64 and float32 otherwise.
        backend: "auto", "reference", "cpu", "triton" or "mamba_ssm"; see `seqattn.kernels.use_backend`.

    A, B, C, D, delta_bias and initial_state are of u's dtype or float32 (float64 beside float64 only). Arithmetic and
    states are float64 for float64 and float32 otherwise. NaN spreads along its own sequence and channels only.

    Returns:
        out (batch, length, channels) in u's dtype; with `return_last_state` also the last state
        (batch, channels, state).

    Raises:
        ValueError: shapes, devices, dtypes, lengths, window or backend do not fit; the message names the argument.
        NotImplementedError: a kernel is asked for a derivative in forward mode (`torch.func.jvp`).
    """
    _check_arguments(u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, window)
    window = window if isinstance(window, torch.SymInt) else min(int(window), LONGEST)
    B, C = (tensor.unsqueeze(2) if tensor.ndim == 3 else tensor for tensor in (B, C))
    groups = max(B.shape[2], C.shape[2])
    B, C = B.expand(-1, -1, groups, -1), C.expand(-1, -1, groups, -1)
    scan = implementation(
        "selective_scan", IMPLEMENTATIONS, backend, u, delta, A, B, C, D, z, delta_bias, initial_state
    )
    out, last, *_ = scan(u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, delta_softplus, window, reverse)
    return (out, last) if return_last_state else out


def selective_scan_step(
    state: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, *, delta_softplus: bool = False, window: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One token, or some whole windows, of a stream: (out, new state), exactly what the full scan gives there.

    Args:
        state: (batch, channels, state) as the previous call returned it; None at the start. A plain tensor: keep it,
            save it, resume from it.
        u, delta, z: (batch, channels) for one token (window 1), or (batch, steps, channels) for `steps` tokens.
        B, C: (batch, state) or (batch, groups, state) for one token; with a step axis after batch otherwise.
        Others: as in `selective_scan`.

    Raises:
        ValueError: as `selective_scan`; or one token, or steps that are no multiple of the window, with window > 1:
            call once per window (the stream's last window, shorter than the others, may be given whole).
    """
    one = u.ndim == 2
    if one and window > 1:
        raise ValueError(
            f"selective_scan_step: one token was given, but window is {window}: give (batch, steps, channels) with a "
            "whole window of steps"
        )
    if window > 1 and u.shape[1] > window and u.shape[1] % window:
        raise ValueError(
            f"selective_scan_step: {u.shape[1]} steps are no multiple of window {window}: give whole windows, and the "
            "stream's shorter last one by itself"
        )
    if one:
        u, delta, B, C = (tensor.unsqueeze(1) for tensor in (u, delta, B, C))
        z = None if z is None else z.unsqueeze(1)
    out, state = selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, window=window, initial_state=state,
        return_last_state=True, backend=backend,
    )  # fmt: skip
    return (out.squeeze(1) if one else out), state


def _check_arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, window: int,
) -> None:  # fmt: skip
    check_tensors(_fail, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    if u.ndim != 3:
        _fail(f"u has shape {tuple(u.shape)}: it must be (batch, length, channels)")
    check_float("u", u, _fail)
    if A.ndim != 2 or A.shape[0] != u.shape[2] or A.shape[1] < 1:
        _fail(f"A has shape {tuple(A.shape)}: it must be (channels, state) with {u.shape[2]} channels, as u has")
    batch, length, channels = u.shape
    state = A.shape[1]
    check_shape("delta", delta, (batch, length, channels), "u and A", _fail)
    for name, tensor in (("B", B), ("C", C)):
        if tensor.ndim not in (3, 4):
            _fail(f"{name} has shape {tuple(tensor.shape)}: it must be (batch, length, [groups,] state)")
        if tensor.ndim == 4 and (tensor.shape[2] < 1 or channels % tensor.shape[2]):
            _fail(f"{name} has {tensor.shape[2]} groups, which do not divide {channels} channels")
        check_shape(name, tensor, (batch, length, *tensor.shape[2:-1], state), "u and A", _fail)
    groups = {tensor.shape[2] if tensor.ndim == 4 else 1 for tensor in (B, C)}
    if len(groups - {1}) > 1:
        _fail(f"B has shape {tuple(B.shape)}, C {tuple(C.shape)}: they must have the same number of groups, or one")
    for name, optional, shape in (
        ("D", D, (channels,)), ("z", z, (batch, length, channels)), ("delta_bias", delta_bias, (channels,)),
        ("initial_state", initial_state, (batch, channels, state)),
    ):  # fmt: skip
        if optional is not None:
            check_shape(name, optional, shape, "u and A", _fail)
    for name, optional in (
        ("delta", delta), ("A", A), ("B", B), ("C", C), ("D", D), ("z", z), ("delta_bias", delta_bias),
        ("initial_state", initial_state),
    ):  # fmt: skip
        if optional is not None:
            check_kind(name, optional, "u", u, name in ("delta", "z"), _fail)
    if isinstance(window, bool) or not isinstance(window, Integral | torch.SymInt) or window < 1:
        _fail(f"window is {window}: it must be an integer of at least 1")
    if lengths is not None:
        check_lengths(lengths, "u", u, u.shape[1], _fail)


def _fail(message: str) -> NoReturn:
    raise ValueError(f"selective_scan: {message}")
