"""mamba-ssm's selective scan and Mamba, with its signatures and layouts, where that package does not install.

Import `Mamba`, `selective_scan_fn` and the others from here instead of from `mamba_ssm` and
`mamba_ssm.ops.selective_scan_interface`. Sequences are (batch, dim, length) as there. Unlike there, a scan is
differentiable in its last state too, runs on a CPU, and takes float64.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seqattn.kernels import selective_scan
from seqattn.kernels.causal_conv import causal_conv_silu
from seqattn.layers import mamba


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Selective scan (arXiv:2312.00752, algorithm 2) by the backend in force; see `seqattn.kernels.selective_scan`.

    Args:
        u, delta, z: (batch, dim, length) of any strides; delta and z are cast to u's dtype.
        A: (dim, state), real.
        B, C: (dim, state), constant in time, (batch, state, length) or (batch, groups, state, length). A constant one
            costs a scan a state, forward and again backward, in memory that does not grow with state.
        D, delta_bias: (dim,), or None for 0. z: None for no gate.
        delta_softplus: whether softplus is applied to delta + delta_bias.
        return_last_state: also return the state after the last step.

    Returns:
        out (batch, dim, length) in u's dtype; with `return_last_state` also the last state (batch, dim, state), float64
        for float64 and float32 otherwise.

    Raises:
        TypeError: A, B or C is complex.
        ValueError: a shape, device or dtype does not fit.
    """
    return _scan_by(
        "auto", u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, return_last_state=return_last_state
    )


def selective_scan_ref(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_scan_fn` step by step in plain PyTorch: slow, for comparison."""
    return _scan_by(
        "reference", u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus,
        return_last_state=return_last_state,
    )  # fmt: skip


def mamba_inner_fn(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor, B: Tensor | None = None, C: Tensor | None = None,
    D: Tensor | None = None, delta_bias: Tensor | None = None, B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None, delta_softplus: bool = True,
) -> Tensor:  # fmt: skip
    """All of the Mamba block after its input projection: xz (batch, 2 * dim, length) -> (batch, length, d_model).

    B, C: (dim, state), constant in time; None takes them from the rows of x_proj_weight after the step's. Other
    arguments are the block's parameters, conv1d_weight (dim, 1, taps).
    """
    x, z = xz.mT.chunk(2, dim=-1)  # (batch, length, dim)
    u = causal_conv_silu(x, conv1d_weight, conv1d_bias)
    rank, state = delta_proj_weight.shape[1], A.shape[1]
    widths = [rank, state if B is None else 0, state if C is None else 0]
    dt, variable_B, variable_C = F.linear(u, x_proj_weight).split(widths, dim=-1)
    B = B if B is not None else variable_B if B_proj_bias is None else variable_B + B_proj_bias
    C = C if C is not None else variable_C if C_proj_bias is None else variable_C + C_proj_bias
    y, _ = _scan("auto", u, F.linear(dt, delta_proj_weight), A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y, out_proj_weight, out_proj_bias)


mamba_inner_ref = mamba_inner_fn  # mamba-ssm's differ in how much is fused


class Mamba(mamba.Mamba):
    """mamba-ssm's `Mamba`: the arguments of `seqattn.layers.mamba.Mamba`, and two more.

    Args:
        use_fast_path: not used, there is one path.
        layer_idx: the layer's key in the states of `inference_params`.
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto", dt_min: float = 0.001, dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random", dt_scale: float = 1.0, dt_init_floor: float = 1e-4,
        conv_bias: bool = True, bias: bool = False, use_fast_path: bool = True, layer_idx: int | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_init, dt_scale, dt_init_floor, conv_bias,
            bias, device, dtype,
        )  # fmt: skip
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:  # type: ignore[override]
        """(batch, length, d_model) -> the same shape.

        Args:
            inference_params: None, or an object with `key_value_memory_dict`, which keeps this layer's two states under
                `layer_idx`, and `seqlen_offset`: 0 starts a sequence, more continues it. Then without gradients.

        Raises:
            ValueError: a shape does not fit, or there are inference_params but no layer_idx.
        """
        if inference_params is None:
            return super().forward(hidden_states)
        if self.layer_idx is None:
            raise ValueError(
                "Mamba: inference_params keeps states by layer_idx, which is None: give it to the constructor"
            )
        memory = inference_params.key_value_memory_dict
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(hidden_states.shape[0])
        conv_state, ssm_state = memory[self.layer_idx]
        if inference_params.seqlen_offset == 0:
            conv_state.zero_()
            ssm_state.zero_()
        return self.step(hidden_states, conv_state, ssm_state)[0]

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int | None = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As the base class; other arguments are not used."""
        return super().allocate_inference_cache(batch_size, max_seqlen, dtype)


def _scan_by(
    backend: str, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, *, delta_softplus: bool, return_last_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    _check_shapes(u, delta, A, B, C, z)
    u, delta = u.mT, delta.mT
    B, C = (tensor if tensor.ndim == 2 else tensor.movedim(-1, 1) for tensor in (B, C))
    out, last = _scan(backend, u, delta, A, B, C, D, None if z is None else z.mT, delta_bias, delta_softplus)
    return (out.mT, last) if return_last_state else out.mT


def _scan(
    backend: str, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out and last state; u, delta, z (batch, length, dim); B, C (dim, state) or (batch, length, [groups,] state)."""
    wide = torch.promote_types(u.dtype, torch.float32)
    delta, z = delta.to(u.dtype), None if z is None else z.to(u.dtype)
    A, B, C = (tensor if tensor.dtype == u.dtype else tensor.to(wide) for tensor in (A, B, C))
    D, delta_bias = (None if vector is None else vector.to(wide) for vector in (D, delta_bias))
    if B.ndim == 2 or C.ndim == 2:
        return _scan_state_by_state(backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, return_last_state=True, backend=backend
    )


def _scan_state_by_state(
    backend: str, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`_scan` with B or C (dim, state): they multiply the input, or the output, of one state's scan.

    All at once they would be (batch, length, dim, state); each state's scan is computed again in the backward pass.
    """
    wide = torch.promote_types(u.dtype, torch.float32)
    ones = torch.ones(1, 1, 1, dtype=wide, device=u.device).expand(*u.shape[:2], 1)

    def scan_state(n: int, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        x = u * B[:, n] if B.ndim == 2 else u
        B_n, C_n = (ones if tensor.ndim == 2 else tensor[..., n : n + 1] for tensor in (B, C))
        y, last = selective_scan(
            x, delta, A[:, n : n + 1], B_n, C_n, delta_bias=delta_bias, delta_softplus=delta_softplus,
            return_last_state=True, backend=backend,
        )  # fmt: skip
        return (y * C[:, n] if C.ndim == 2 else y), last

    arguments = [tensor.to(wide) for tensor in (u, delta, A, B, C)]
    out, lasts = torch.zeros_like(arguments[0]), []
    for n in range(A.shape[1]):
        y, last = checkpoint(scan_state, n, *arguments, use_reentrant=False, preserve_rng_state=False)
        out = out + y
        lasts.append(last)
    if D is not None:
        out = out + D * arguments[0]
    if z is not None:
        out = out * F.silu(z.to(wide))
    return out.to(u.dtype), torch.cat(lasts, dim=-1)


def _check_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor | None) -> None:
    for name, tensor in (("A", A), ("B", B), ("C", C)):
        if tensor.is_complex():
            raise TypeError(
                f"selective_scan_fn: {name} is {tensor.dtype}: complex states are not supported, give real ones"
            )
    if u.ndim != 3 or A.ndim != 2 or A.shape[0] != u.shape[1]:
        raise ValueError(
            f"selective_scan_fn: u has shape {tuple(u.shape)}, A {tuple(A.shape)}: they must be (batch, dim, length) "
            "and (dim, state)"
        )
    (batch, dim, length), state = u.shape, A.shape[1]
    for name, tensor in (("delta", delta), ("z", u if z is None else z)):
        if tensor.shape != u.shape:
            raise ValueError(
                f"selective_scan_fn: {name} has shape {tuple(tensor.shape)}: it must be u's, {tuple(u.shape)}"
            )
    for name, tensor in (("B", B), ("C", C)):
        groups = tensor.shape[1] if tensor.ndim == 4 else 1
        fitting = {2: (dim, state), 3: (batch, state, length), 4: (batch, groups, state, length)}.get(tensor.ndim)
        if tensor.shape != fitting:
            raise ValueError(
                f"selective_scan_fn: {name} has shape {tuple(tensor.shape)}: it must be {(dim, state)}, "
                f"{(batch, state, length)} or {(batch, 'groups', state, length)}"
            )
