"""The signal front end of MambAttention (arXiv:2507.00966): compressed magnitude and phase of a centred STFT."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.layers.masking import length_mask

SILENCE = 1e-12  # mean square below which a signal is not amplified any further
SMOOTHING = 1e-10  # added inside the magnitude and the angle where they are differentiated


def rms_gain(waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
    """1 / root mean square over the valid samples of (batch, samples): (batch,); finite on silence.

    lengths: (batch,) valid samples, None means all.
    """
    if lengths is None:
        power = waveform.square().mean(-1)
    else:
        valid = waveform.where(length_mask(lengths, waveform.shape[-1]), 0)
        power = valid.square().sum(-1) / lengths.clamp_min(1)
    return power.clamp_min(SILENCE).rsqrt()


class Spectrum(nn.Module):
    """Waveform to compressed spectrum and back: |S|^compression and angle(S), in frames of n_fft samples every hop.

    The window is a periodic Hann window; both ends are extended by n_fft / 2 reflected samples. A clip that is no
    multiple of `hop`, or shorter than half a window, is first extended with zeros. Each clip of a batch is transformed
    as it is alone.

    Args:
        n_fft: samples of a window and of a transform, hop: samples between frames. compression: exponent of magnitudes.
    """

    def __init__(self, n_fft: int = 400, hop: int = 100, compression: float = 0.3) -> None:
        super().__init__()
        self.n_fft, self.hop, self.compression = n_fft, hop, compression

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def _shortest(self) -> int:
        """Samples of which half a window can be reflected."""
        return (self.n_fft // 2 // self.hop + 1) * self.hop

    def frames(self, lengths: Tensor) -> Tensor:
        """Frames of clips of that many samples."""
        return 1 + self._extended(lengths) // self.hop

    def forward(self, waveform: Tensor, lengths: Tensor | None = None, smooth: bool = False) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> compressed magnitude and phase, (batch, bins, frames) each, 0 past a clip's end.

        lengths: (batch,) valid samples, None means all. smooth: the form with an epsilon, whose gradient is finite.
        """
        extended = max(-(-waveform.shape[-1] // self.hop) * self.hop, self._shortest)
        ends = None if lengths is None else self._extended(lengths)
        framed = self._reflected(waveform, extended, lengths, ends).unfold(-1, self.n_fft, self.hop)
        spectrum = torch.fft.rfft(framed * self._window(waveform)).transpose(1, 2)  # (batch, bins, frames)
        if ends is not None:
            spectrum = spectrum.where(length_mask(1 + ends // self.hop, spectrum.shape[-1])[:, None], 0)
        if smooth:
            real, imaginary = spectrum.real, spectrum.imag
            magnitude = (real.square() + imaginary.square() + SMOOTHING).sqrt()
            phase = torch.atan2(imaginary + SMOOTHING, real + SMOOTHING)
        else:
            magnitude, phase = spectrum.abs(), spectrum.angle()
        return magnitude**self.compression, phase

    def inverse(self, magnitude: Tensor, phase: Tensor, samples: int, lengths: Tensor | None = None) -> Tensor:
        """Compressed magnitude and phase (batch, bins, frames) -> (batch, samples), 0 past a clip's end.

        samples: as the waveform had that the spectrum is of. lengths: (batch,) valid samples, None means all.
        """
        amplitude = magnitude ** (1 / self.compression)
        frames = torch.fft.irfft(torch.polar(amplitude, phase).transpose(1, 2), n=self.n_fft)  # (batch, frames, n_fft)
        window = self._window(frames)
        weights = window.square().expand(1, frames.shape[1], -1)
        frames = frames * window
        if lengths is not None:
            inside = length_mask(1 + self._extended(lengths) // self.hop, frames.shape[1])[..., None]
            frames, weights = frames.where(inside, 0), weights.where(inside, 0)
        overlap = self._overlap_add(frames)[:, :samples]
        envelope = self._overlap_add(weights)[:, :samples]
        if lengths is None:
            return overlap / envelope
        valid = length_mask(lengths, samples)
        return (overlap / envelope.where(valid, 1)).where(valid, 0)

    def _extended(self, samples: Tensor) -> Tensor:
        """The next multiple of `hop`, or the shortest clip."""
        return (-(-samples // self.hop) * self.hop).clamp_min(self._shortest)

    def _reflected(self, waveform: Tensor, extended: int, lengths: Tensor | None, ends: Tensor | None) -> Tensor:
        """(batch, extended + n_fft): each clip, zeros up to its own end, n_fft / 2 reflected samples on both sides."""
        half, samples = self.n_fft // 2, waveform.shape[-1]
        if lengths is not None:
            waveform = waveform.where(length_mask(lengths, samples), 0)
        waveform = F.pad(waveform, (0, extended - samples))
        if ends is None:
            return F.pad(waveform, (half, half), mode="reflect")
        place = torch.arange(-half, extended + half, device=waveform.device).abs()
        place = torch.minimum(place, 2 * (ends[:, None] - 1) - place)  # negative well past a clip's end
        return waveform.gather(1, place.clamp_min(0)).where(place >= 0, 0)

    def _window(self, like: Tensor) -> Tensor:
        """Made anew for every call, so that no conversion of the module rounds it."""
        return torch.hann_window(self.n_fft, dtype=torch.float64, device=like.device).to(like.dtype)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(batch, frames, n_fft) -> (batch, samples), without the n_fft / 2 samples in front of the clip."""
        length = (frames.shape[1] - 1) * self.hop + self.n_fft
        columns = frames.transpose(1, 2)  # (batch, n_fft, frames)
        whole = F.fold(columns, (1, length), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]
        return whole[:, self.n_fft // 2 :]


def to_complex(magnitude: Tensor, phase: Tensor) -> Tensor:
    """Real and imaginary part of a compressed spectrum, on a last axis of 2."""
    return torch.stack([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1)
