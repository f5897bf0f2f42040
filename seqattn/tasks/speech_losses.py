"""The generator's objective of MambAttention (arXiv:2507.00966, section III-D; terms as MP-SENet, arXiv:2308.08926)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from seqattn.layers.spectrum import Spectrum, to_complex

WEIGHTS = {"magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.2, "metric": 0.05, "consistency": 0.1}


class Speech(NamedTuple):
    """One signal in all its forms: (batch, bins, frames), complex with a last axis of 2, waveform (batch, samples)."""

    magnitude: Tensor
    phase: Tensor
    complex: Tensor
    waveform: Tensor


def analysed(spectrum: Spectrum, waveform: Tensor) -> Speech:
    """All forms of a waveform (batch, samples)."""
    magnitude, phase = spectrum(waveform)
    return Speech(magnitude, phase, to_complex(magnitude, phase), waveform)


def reconstruction_losses(spectrum: Spectrum, target: Speech, output: Speech) -> dict[str, Tensor]:
    """Every term but the metric's, unweighted, by the names of `WEIGHTS`."""
    magnitude, phase = spectrum(output.waveform, smooth=True)
    return {
        "magnitude": (target.magnitude - output.magnitude).square().mean(),
        "phase": sum(phase_losses(target.phase, output.phase).values(), start=target.phase.new_zeros(())),
        "complex": 2 * (target.complex - output.complex).square().mean(),
        "time": (target.waveform - output.waveform).abs().mean(),
        "consistency": 2 * (output.complex - to_complex(magnitude, phase)).square().mean(),
    }


def phase_losses(target: Tensor, output: Tensor) -> dict[str, Tensor]:
    """Mean wrapped distance of the phases, of their group delays and of their instantaneous frequencies.

    As published, the first bin and the first frame take part in the differences with their own values.
    """
    error = target - output  # (batch, bins, frames)
    return {
        "instantaneous": _wrapped(error).mean(),
        "group_delay": _wrapped(torch.diff(error, dim=1, prepend=torch.zeros_like(error[:, :1]))).mean(),
        "frequency": _wrapped(torch.diff(error, dim=2, prepend=torch.zeros_like(error[:, :, :1]))).mean(),
    }


def discriminator_loss(score: Tensor, label: Tensor) -> Tensor:
    """Mean squared distance of scores and labels (batch,), over the clips whose label is not NaN; 0 where none is."""
    known = ~label.isnan()
    return (score - label.where(known, 0)).where(known, 0).square().sum() / known.sum().clamp_min(1)


def _wrapped(error: Tensor) -> Tensor:
    return (error - 2 * math.pi * (error / (2 * math.pi)).round()).abs()
