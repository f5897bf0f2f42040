"""Scale-invariant signal-to-distortion ratio, for batches and under autograd."""

import torch
from torch import Tensor

from seqattn.errors import SeqattnError


def si_sdr(reference: Tensor, estimate: Tensor, lengths: Tensor | None = None) -> Tensor:
    """10 log10(‖αs‖² / ‖αs − ŝ‖²) in dB with α = ⟨ŝ, s⟩ / ‖s‖², no mean removed: (batch, samples) -> (batch,).

    reference: the clean signals s; estimate: ŝ, of the same shape and dtype.
    lengths: (batch,) valid samples, None means all; what lies past the end counts for nothing, NaN included.
    NaN where either signal is silent, infinite where the estimate is a multiple of the reference.
    J. Le Roux et al., "SDR - half-baked or well done?" (https://arxiv.org/abs/1811.02508).

    Raises:
        SeqattnError: the shapes differ or are not (batch, samples).
    """
    if reference.ndim != 2 or reference.shape != estimate.shape:
        raise SeqattnError(
            f"si_sdr: reference has shape {tuple(reference.shape)}, estimate {tuple(estimate.shape)}: "
            "both must be the same (batch, samples)"
        )
    if lengths is not None:
        outside = torch.arange(reference.shape[1], device=reference.device) >= lengths[:, None]  # (batch, samples)
        reference, estimate = reference.masked_fill(outside, 0), estimate.masked_fill(outside, 0)
    scale = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True)
    target = scale * reference
    return 10 * torch.log10(target.square().sum(-1) / (target - estimate).square().sum(-1))
