"""The Mamba block (arXiv:2312.00752, section 3.4) and its locally bi-directional form LBMamba (arXiv:2506.15976)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqattn.kernels import selective_scan, selective_scan_step
from seqattn.kernels.causal_conv import causal_conv_silu
from seqattn.kernels.linear import linear
from seqattn.layers.linear import Linear
from seqattn.layers.masking import length_mask
from seqattn.layers.recompute import recomputing


class Mamba(nn.Module):
    """(batch, length, d_model) -> the same shape: projection, causal convolution, selective scan, gate, projection.

    Parameter names, shapes, initialisation and the marks `_no_weight_decay` and `_no_reinit` are those of mamba-ssm's
    `Mamba`: state dicts load both ways.

    Args:
        d_model: width of the input and the output. d_state: states a channel. d_conv: taps of the convolution.
        expand: the scan has expand * d_model channels.
        dt_rank: width of the projection that gives the step sizes; "auto" is d_model / 16, rounded up.
        dt_min, dt_max, dt_init_floor: step sizes at initialisation, log-uniform in [dt_min, dt_max] and not below the
            floor. dt_init, dt_scale: that projection's weight, "random" or "constant", at dt_scale / sqrt(dt_rank).
        conv_bias, bias: whether the convolution, and the outer projections, have one.

    Raises:
        ValueError: dt_init is neither "random" nor "constant".
    """

    window: int | Literal["official"] = 1

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto", dt_min: float = 0.001, dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random", dt_scale: float = 1.0, dt_init_floor: float = 1e-4,
        conv_bias: bool = True, bias: bool = False, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **kind)  # rows: scan input, gate
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1, bias=conv_bias, **kind
        )
        self.x_proj = Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **kind)  # rows: step, B, C
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **kind)
        self._init_steps(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        # float32 whatever dtype says: their rounding would act on every step of the scan
        rates = torch.arange(1, d_state + 1, dtype=torch.float32, device=device).log()
        self.A_log = nn.Parameter(rates.repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner, device=device))
        self.A_log._no_weight_decay = self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.out_proj = Linear(self.d_inner, d_model, bias=bias, **kind)

    @torch.no_grad()
    def _init_steps(self, dt_min: float, dt_max: float, dt_init: str, dt_scale: float, dt_init_floor: float) -> None:
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        std = dt_scale * self.dt_rank**-0.5
        if dt_init == "constant":
            nn.init.constant_(weight, std)
        elif dt_init == "random":
            nn.init.uniform_(weight, -std, std)
        else:
            raise ValueError(f'Mamba: dt_init is {dt_init!r}: it must be "random" or "constant"')
        place = torch.rand(self.d_inner, device=bias.device, dtype=bias.dtype)
        step = torch.exp(place * math.log(dt_max / dt_min) + math.log(dt_min)).clamp_min(dt_init_floor)
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        bias._no_reinit = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, lengths: Tensor | None = None, reverse: bool = False) -> Tensor:
        """Mix the steps of x.

        Args:
            x: (batch, length, d_model).
            lengths: (batch,) valid steps per sequence, None for all. Padding changes nothing; the output is 0 there.
            reverse: exactly what flipping each sequence at its own length before and after gives, without the flips.

        Raises:
            ValueError: x or lengths do not have these shapes, or a length lies outside [0, length].
        """
        out = self.out_proj(self.mix(x, lengths, reverse))
        return out if self.out_proj.bias is None else _masked(out, _steps_mask(x, lengths))

    def mix(
        self, x: Tensor, lengths: Tensor | None = None, reverse: bool = False, scale: Tensor | None = None
    ) -> Tensor:
        """What `forward` of x * scale gives in front of its last projection: (batch, length, d_inner), 0 at padding.

        For those who fold that projection into what follows it. scale: (d_model,), folded into the first projection.
        Other arguments and errors as `forward`'s.
        """
        self._check_input(x, lengths)
        mask = _steps_mask(x, lengths)
        # NaN at padding would otherwise reach the gradients of the weights
        u, z = self._project(_masked(x, mask), scale)
        if self.in_proj.bias is not None:
            u = _masked(u, mask)
        window = official_window(x.shape[1]) if self.window == "official" else self.window
        with recomputing() as again:
            u = again(causal_conv_silu, u, self.conv1d.weight, self.conv1d.bias, reverse)
            arguments = self._scan_arguments(u, z, again)
            return selective_scan(*arguments, delta_softplus=True, window=window, lengths=lengths, reverse=reverse)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zero states for `step`: inputs of the convolution (batch, d_inner, d_conv), and (batch, d_inner, d_state).

        Args:
            max_seqlen: not used, the states do not grow.
            dtype: of both; None is the weights' for the first and at least float32 for the second.
        """
        weight = self.conv1d.weight
        state_dtype = dtype or torch.promote_types(weight.dtype, torch.float32)
        conv_state = weight.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype)
        return conv_state, weight.new_zeros(batch_size, self.d_inner, self.d_state, dtype=state_dtype)

    @torch.no_grad()
    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Continue a stream: exactly what `forward` of the whole stream gives there. Without gradients.

        Args:
            hidden_states: (batch, steps, d_model): one step, or any number; with LBMamba one window or several, and
                the stream's shorter last one by itself.
            conv_state, ssm_state: as `allocate_inference_cache` or the previous call returned them; updated in place.

        Returns:
            out (batch, steps, d_model) and the two states.

        Raises:
            ValueError: a shape or the number of steps does not fit, or window is "official".
        """
        self._check_input(hidden_states, None)
        for name, state, size in (("conv_state", conv_state, self.d_conv), ("ssm_state", ssm_state, self.d_state)):
            fitting = (hidden_states.shape[0], self.d_inner, size)
            if state.shape != fitting:
                raise ValueError(
                    f"Mamba: {name} has shape {tuple(state.shape)}: it must be {fitting} beside this input"
                )
        if self.window == "official":
            raise ValueError(
                'LBMamba: step needs an integer window: "official" depends on the length of the whole stream'
            )
        u, z = self._project(hidden_states)
        recent = torch.cat([conv_state.transpose(1, 2).to(u.dtype), u], 1)  # (batch, d_conv + steps, d_inner)
        u = causal_conv_silu(recent, self.conv1d.weight, self.conv1d.bias)[:, self.d_conv :]
        state = ssm_state.to(torch.promote_types(u.dtype, torch.float32))
        arguments = self._scan_arguments(u, z, recomputing())
        y, state = selective_scan_step(state, *arguments, delta_softplus=True, window=self.window)
        conv_state.copy_(recent[:, -self.d_conv :].transpose(1, 2))
        ssm_state.copy_(state)
        return self.out_proj(y), conv_state, ssm_state

    def _project(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scan input before its convolution, and gate, of x * scale: (batch, length, d_inner) each."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        weight = weight if scale is None else weight * scale
        biases = (None, None) if bias is None else bias.chunk(2)
        # two products: the halves of one would have to be copied for the convolution and the scan
        u, z = (linear(x, half, b) for half, b in zip(weight.chunk(2), biases, strict=True))
        return u, z

    def _scan_arguments(self, u: Tensor, z: Tensor, again: recomputing) -> tuple[Tensor, ...]:
        """u, delta, A, B, C, D, z and delta_bias of the selective scan; in half precision A, D and bias in float32."""
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = again(linear, dt, self.dt_proj.weight)
        wide = torch.promote_types(u.dtype, torch.float32)
        return u, delta, -self.A_log.to(wide).exp(), B, C, self.D.to(wide), z, self.dt_proj.bias.to(wide)

    def _check_input(self, x: Tensor, lengths: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"Mamba: x has shape {tuple(x.shape)}: it must be (batch, length, {self.d_model})")
        if lengths is not None and lengths.shape != x.shape[:1]:
            raise ValueError(f"Mamba: lengths has shape {tuple(lengths.shape)}: it must be ({x.shape[0]},), as x has")


class LBMamba(Mamba):
    """`Mamba` whose scan also looks ahead inside windows of steps (arXiv:2506.15976); no parameter more.

    A step sees every earlier step and the later ones of its own window. Windows are counted from the first step, or
    with `reverse` from the last one of each sequence.

    Args:
        window: steps a window: 1 is Mamba, the length or more sees everything. "official" is the released CUDA code's
            rule, 4 to 16 by the length of the padded batch: the same weights are then another function at another
            length, and torch.export with a dynamic length is not possible.
        Others: as in `Mamba`, by name.

    Raises:
        ValueError: window is less than 1 or another word.
    """

    def __init__(self, d_model: int, *, window: int | Literal["official"] = 8, **options: Any) -> None:
        super().__init__(d_model, **options)
        if window != "official" and (not isinstance(window, int) or window < 1):
            raise ValueError(f'LBMamba: window is {window!r}: it must be an integer of at least 1, or "official"')
        self.window = window


def official_window(length: int) -> int:
    """The window LBMamba's released CUDA code uses for sequences of `length` steps."""
    if length <= 128:
        return 4
    return 8 if length <= 256 else 16


def _steps_mask(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else length_mask(lengths, x.shape[1])[..., None]  # (batch, length, 1)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.where(mask, 0)
