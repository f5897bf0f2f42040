"""MambAttention: single-channel speech enhancement in the time-frequency domain (arXiv:2507.00966)."""

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from seqattn.layers.dense_block import ConvUnit, DenseBlock, InstanceNorm, norm_prelu
from seqattn.layers.masking import length_mask
from seqattn.layers.spectrum import Spectrum, rms_gain, to_complex
from seqattn.layers.time_frequency import TimeFrequencyBlock
from seqattn.models.mambattention_official import convert_state_dict, sizes_of


class Encoder(nn.Module):
    """(batch, 2, frames, bins) -> (batch, channels, frames, (bins - 1) / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = ConvUnit(nn.Conv2d(2, channels, 1), channels)
        self.dense = DenseBlock(channels)
        self.reduce = ConvUnit(nn.Conv2d(channels, channels, (1, 3), stride=(1, 2)), channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.reduce(self.dense(self.expand(x, mask), mask), mask)


class MaskDecoder(nn.Module):
    """(batch, channels, frames, (bins - 1) / 2) -> a mask (batch, frames, bins) between 0 and `limit`."""

    def __init__(self, channels: int, bins: int, limit: float) -> None:
        super().__init__()
        self.dense = DenseBlock(channels)
        self.up = nn.ConvTranspose2d(channels, channels, (1, 3), stride=(1, 2))
        self.squeeze, self.norm, self.act = nn.Conv2d(channels, 1, 1), InstanceNorm(1), nn.PReLU(1)
        self.point = nn.Conv2d(1, 1, 1)
        self.slope = nn.Parameter(torch.ones(bins))
        self.limit = limit

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = norm_prelu(self.squeeze(self.up(self.dense(x, mask))), self.norm, self.act, mask)
        return self.limit * torch.sigmoid(self.slope * self.point(x)[:, 0])


class PhaseDecoder(nn.Module):
    """(batch, channels, frames, (bins - 1) / 2) -> a phase (batch, frames, bins) in [-pi, pi]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = DenseBlock(channels)
        self.up = ConvUnit(nn.ConvTranspose2d(channels, channels, (1, 3), stride=(1, 2)), channels)
        self.real, self.imaginary = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.up(self.dense(x, mask), mask)
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.atan2(self.imaginary(x)[:, 0].to(wide), self.real(x)[:, 0].to(wide))


class MambAttention(nn.Module):
    """A mask for the magnitude and a new phase, from the compressed magnitude and the phase of noisy speech at 16 kHz.

    The defaults are the published network, of 2,325,841 parameters.

    Args:
        channels: of the trunk, a multiple of heads. blocks: of the trunk.
        mixer: "mamba", "lbmamba", "lstm" or "conformer"; mixer_options: of its class in `layers.time_frequency_mixers`.
        heads, attention, attention_position, checkpoint: see `layers.time_frequency.TimeFrequencyBlock`.
        n_fft, hop, compression: see `layers.spectrum.Spectrum`; n_fft must be a multiple of 4.
        mask_limit: the largest factor of a compressed magnitude; 2 is 20 dB.

    Raises:
        ValueError: heads do not divide channels, or n_fft is not a multiple of 4.
    """

    def __init__(
        self, channels: int = 64, blocks: int = 4, *, mixer: str = "mamba", heads: int = 8,
        attention: Literal["shared", "separate", "none"] = "shared",
        attention_position: Literal["before", "after"] = "before", checkpoint: bool = False, n_fft: int = 400,
        hop: int = 100, compression: float = 0.3, mask_limit: float = 2.0, **mixer_options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels % heads:
            raise ValueError(f"MambAttention: {heads} heads do not divide {channels} channels: change one of them")
        if n_fft % 4:
            raise ValueError(f"MambAttention: n_fft is {n_fft}: it must be a multiple of 4")
        self.spectrum = Spectrum(n_fft, hop, compression)
        self.encoder = Encoder(channels)
        self.blocks = nn.ModuleList(
            TimeFrequencyBlock(
                channels, mixer=mixer, heads=heads, attention=attention, attention_position=attention_position,
                checkpoint=checkpoint, **mixer_options,
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.mask_decoder = MaskDecoder(channels, self.spectrum.bins, mask_limit)
        self.phase_decoder = PhaseDecoder(channels)

    @classmethod
    def from_official(cls, state_dict: dict[str, Any]) -> Self:
        """The published network with its weights, or a smaller one of its kind.

        state_dict: of the generator, or the published checkpoint, a dict with an entry "generator".

        Half-precision weights become float32.

        Raises:
            ValueError: an entry is missing, unknown or has another shape.
        """
        weights = state_dict.get("generator", state_dict)
        wide = torch.promote_types(next(iter(weights.values())).dtype, torch.float32)
        model = cls(**sizes_of(weights)).to(wide)
        model.load_state_dict(convert_state_dict(weights, model))
        return model

    def forward(self, magnitude: Tensor, phase: Tensor, frames: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Enhance compressed spectra.

        Args:
            magnitude, phase: (batch, bins, frames), as `spectrum` gives them of waveforms with a mean square of 1.
            frames: (batch,) valid frames, None means all. The rest changes nothing and is 0 in the results.

        Returns:
            magnitude, phase (batch, bins, frames) and complex (batch, bins, frames, 2) of the enhanced speech.
        """
        mask = None if frames is None else length_mask(frames, magnitude.shape[2])  # (batch, frames)
        if mask is not None:
            magnitude, phase = magnitude.where(mask[:, None], 0), phase.where(mask[:, None], 0)
        images = None if mask is None else mask[:, None, :, None]
        x = self.encoder(torch.stack([magnitude, phase], dim=1).transpose(2, 3), images)
        x = x.permute(0, 2, 3, 1)  # (batch, frames, bins, channels)
        for block in self.blocks:
            x = block(x, frames)
        x = x.permute(0, 3, 1, 2)
        x = x.contiguous() if images is None else x.where(images, 0)
        magnitude = self.mask_decoder(x, images).transpose(1, 2).to(magnitude.dtype) * magnitude
        phase = self.phase_decoder(x, images).transpose(1, 2).to(magnitude.dtype)
        if mask is not None:
            phase = phase.where(mask[:, None], 0)
        return magnitude, phase, to_complex(magnitude, phase)

    @torch.no_grad()
    def enhance(self, waveform: Tensor, lengths: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        """Enhance noisy speech at 16 kHz: (batch, samples) -> the same shape; without gradients.

        Args:
            waveform: of any level, floating point.
            lengths: (batch,) valid samples, None means all. The rest changes nothing and is 0 in the result.
            gain: (batch,) by which the network's input is scaled, default `rms_gain` of each clip.

        Raises:
            ValueError: a shape does not fit.
        """
        if waveform.ndim != 2 or waveform.shape[1] == 0:
            raise ValueError(f"enhance: waveform has shape {tuple(waveform.shape)}: give (batch, samples)")
        for name, given in (("lengths", lengths), ("gain", gain)):
            if given is not None and given.shape != waveform.shape[:1]:
                raise ValueError(
                    f"MambAttention.enhance: {name} has shape {tuple(given.shape)}: it must be ({len(waveform)},)"
                )
        scale = (rms_gain(waveform, lengths) if gain is None else gain.to(waveform.dtype))[:, None]
        magnitude, phase = self.spectrum(waveform * scale, lengths)
        frames = None if lengths is None else self.spectrum.frames(lengths)
        enhanced, phase, _ = self(magnitude, phase, frames)
        return self.spectrum.inverse(enhanced, phase, waveform.shape[1], lengths) / scale
