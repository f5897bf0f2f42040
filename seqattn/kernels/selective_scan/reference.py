"""The selective scan in plain PyTorch: the recurrence, one step after another. The law for every other backend."""

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, lengths: Tensor | None, delta_softplus: bool, window: int,
    reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return out (batch, length, channels) in u's dtype and the last state (batch, channels, state).

    The arguments are those of `selective_scan`, checked; B and C are (batch, length, groups, state). Arithmetic is in
    float64 for float64 and in float32 otherwise. Unlike the kernels it keeps every (channels, state) tensor of a step.
    """
    batch, length, channels = u.shape
    dtype = torch.promote_types(u.dtype, torch.float32)
    ends = torch.full((batch,), length, device=u.device) if lengths is None else lengths
    steps = torch.arange(length, device=u.device)
    valid = (steps < ends[:, None])[..., None]  # (batch, length, 1)
    # a step's place in the order of the scan, from 0; windows are counted there
    place = ends[:, None] - 1 - steps if reverse else steps.expand(batch, length)
    reads_next = ((place + 1) % window != 0) & (place + 1 < ends[:, None])

    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    step = step.where(valid, 0)
    if delta_softplus:
        step = F.softplus(step).where(valid, 0)
    # past its end a sequence has step 0 and input 0: there the state stays as it is, whatever the padding holds
    x = u.to(dtype).where(valid, 0)
    per_group = channels // B.shape[2]
    B, C = (t.to(dtype).where(valid[..., None], 0).repeat_interleave(per_group, dim=2) for t in (B, C))
    A = A.to(dtype)
    h = u.new_zeros(batch, channels, A.shape[1], dtype=dtype) if initial_state is None else initial_state.to(dtype)

    x_t, step_t, B_t, C_t = x.unbind(1), step.unbind(1), B.unbind(1), C.unbind(1)
    inputs = [(d * u)[..., None] * b for d, u, b in zip(step_t, x_t, B_t, strict=True)]  # b_t (batch, channels, state)
    order = range(length - 1, -1, -1) if reverse else range(length)
    y: dict[int, Tensor] = {}
    for t in order:  # h_t = a_t h_{t-1} + b_t
        h = torch.exp(step_t[t][..., None] * A) * h + inputs[t]
        y[t] = (C_t[t] * h).sum(-1)
    k = torch.zeros_like(h)
    for t in reversed(order) if window > 1 else ():  # against the order, in each window: k_t = a_t k_{t+1} + b_t
        look = torch.exp(step_t[t][..., None] * A) * k.where(reads_next[:, t, None, None], 0)
        k = look + inputs[t]
        y[t] = y[t] + (C_t[t] * look).sum(-1)

    out = torch.stack([y[t] for t in range(length)], 1) if length else x
    if D is not None:
        out = out + D.to(dtype) * x
    if z is not None:
        out = out * F.silu(z.to(dtype).where(valid, 0))
    return out.where(valid, 0).to(u.dtype), h
