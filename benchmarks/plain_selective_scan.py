"""Other ways to compute the selective scan, on (batch, length, channels): what `selective_scan.py` is timed against."""

import torch
from torch import Tensor


def unbind_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """One step after another, no (…, state) tensor for more than a step: the best that plain PyTorch does."""
    h, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[:, None]
        outputs.append((h @ C_t[..., None]).squeeze(-1))
    return torch.stack(outputs, 1) + D * u


def published_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The formulation of mamba-ssm's reference: all transitions and inputs at once, then indexed step by step."""
    transitions = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
    inputs = torch.einsum("bld,bln,bld->bldn", delta, B, u)
    h, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[1]):
        h = transitions[:, t] * h + inputs[:, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return torch.stack(outputs, 1) + D * u


def mambapy_pscan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The parallel scan of mambapy, called as its Mamba block does."""
    from mambapy.pscan import pscan

    states = pscan(torch.exp(delta[..., None] * A), delta[..., None] * B[:, :, None] * u[..., None])
    return (states @ C[..., None]).squeeze(-1) + D * u


def two_scans_and_flips(scan, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The bidirectional scan as it is usually made: a scan, a second one over flipped copies, and a flip back."""
    back = scan(*(tensor.flip(1) for tensor in (u, delta)), A, *(tensor.flip(1) for tensor in (B, C)), D)
    return scan(u, delta, A, B, C, D) + back.flip(1)


def mamba_ssm_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mamba-ssm's CUDA kernel, with the copies that its layout (batch, channels, length) asks for."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (u, delta, B, C))
    return selective_scan_fn(u, delta, A, B, C, D).transpose(1, 2)
