"""MambAttention written down step by step as published, for comparison only: flips, a loop over steps, scores kept.

Parameter names are those of the published state dicts, so `MambAttention.from_official(plain.state_dict())` holds the
same network. Front end and loss terms are beside it. Magnitudes and phases are (batch, bins, frames).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm
from torch.utils.checkpoint import checkpoint

FFT, HOP, EXPONENT = 400, 100, 0.3
LOSS_WEIGHTS = {"magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.2, "metric": 0.05, "consistency": 0.1}


def stft(waveform: Tensor, epsilon: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, samples) -> compressed magnitude, phase and complex, which has a last axis of 2.

    With `epsilon` no gradient is unbounded: the form of the consistency loss.
    """
    window = torch.hann_window(FFT, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(waveform, FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    re, im = spectrum.real, spectrum.imag
    if epsilon:
        amplitude, phase = torch.sqrt(re**2 + im**2 + 1e-10), torch.atan2(im + 1e-10, re + 1e-10)
    else:
        amplitude, phase = spectrum.abs(), spectrum.angle()
    magnitude = amplitude**EXPONENT
    return magnitude, phase, polar(magnitude, phase)


def polar(magnitude: Tensor, phase: Tensor) -> Tensor:
    return torch.stack([magnitude * torch.cos(phase), magnitude * torch.sin(phase)], dim=-1)


def inverse_stft(magnitude: Tensor, phase: Tensor) -> Tensor:
    """Compressed magnitude and phase -> (batch, HOP * (frames - 1)) samples."""
    window = torch.hann_window(FFT, dtype=magnitude.dtype, device=magnitude.device)
    amplitude = magnitude ** (1 / EXPONENT)
    spectrum = torch.complex(amplitude * torch.cos(phase), amplitude * torch.sin(phase))
    return torch.istft(spectrum, FFT, HOP, window=window, center=True)


def phase_losses(clean: Tensor, enhanced: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean wrapped error of the phase and of its differences along bins and frames, by dense difference matrices."""
    bins, frames = clean.shape[1:]
    by_bin, by_frame = _difference_matrix(bins, clean), _difference_matrix(frames, clean)
    triples = ((phases, by_bin @ phases, phases @ by_frame.T) for phases in (clean, enhanced))
    return tuple(_wrapped(a - b).mean() for a, b in zip(*triples, strict=True))


def _difference_matrix(size: int, like: Tensor) -> Tensor:
    """x[i] - x[i - 1]; the first row keeps x[0]."""
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return eye - torch.diag(eye.new_ones(size - 1), -1)


def _wrapped(error: Tensor) -> Tensor:
    return torch.abs(error - torch.round(error / (2 * math.pi)) * 2 * math.pi)


def generator_losses(
    enhanced: tuple[Tensor, Tensor, Tensor], clean_waveform: Tensor, clean_score: Tensor | None = None
) -> dict[str, Tensor]:
    """Unweighted terms of the generator's loss; `LOSS_WEIGHTS` has their weights.

    Args:
        enhanced: magnitude, phase and complex that the generator gave.
        clean_waveform: (batch, samples), a multiple of HOP, scaled as the noisy one was.
        clean_score: what the discriminator says of the clean and the enhanced magnitude; None leaves "metric" out.
    """
    magnitude, phase, spectrum = enhanced
    clean_magnitude, clean_phase, clean_spectrum = stft(clean_waveform)
    waveform = inverse_stft(magnitude, phase)
    losses = {
        "magnitude": F.mse_loss(clean_magnitude, magnitude),
        "phase": sum(phase_losses(clean_phase, phase)),
        "complex": 2 * F.mse_loss(clean_spectrum, spectrum),
        "time": F.l1_loss(clean_waveform, waveform),
        "consistency": 2 * F.mse_loss(spectrum, stft(waveform, epsilon=True)[2]),
    }
    if clean_score is not None:
        losses["metric"] = F.mse_loss(clean_score, torch.ones_like(clean_score))
    return losses


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    return sum(LOSS_WEIGHTS[name] * value for name, value in losses.items())


class LearnableSigmoid(nn.Module):
    def __init__(self, *shape: int, beta: float) -> None:
        super().__init__()
        self.beta, self.slope = beta, nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.beta * torch.sigmoid(self.slope * x)


def normalized(conv: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.InstanceNorm2d(channels, affine=True), nn.PReLU(channels))


class DenseBlock(nn.Module):
    """(batch, channels, frames, bins) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_block = nn.ModuleList()
        for i in range(4):
            dilation = 2**i
            conv = nn.Conv2d(channels * (i + 1), channels, 3, dilation=(dilation, 1), padding=(dilation, 1))
            self.dense_block.append(normalized(conv, channels))

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        for layer in self.dense_block:
            x = layer(skip)
            skip = torch.cat([x, skip], dim=1)  # the new ones first
        return x


class DenseEncoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_conv_1 = normalized(nn.Conv2d(2, channels, 1), channels)
        self.dense_block = DenseBlock(channels)
        self.dense_conv_2 = normalized(nn.Conv2d(channels, channels, (1, 3), (1, 2)), channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_conv_2(self.dense_block(self.dense_conv_1(x)))


class MaskDecoder(nn.Module):
    """(batch, channels, frames, bins // 2) -> mask (batch, bins, frames)."""

    def __init__(self, channels: int, bins: int) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels)
        self.mask_conv = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, (1, 3), (1, 2)),
            nn.Conv2d(channels, 1, 1),
            nn.InstanceNorm2d(1, affine=True),
            nn.PReLU(1),
            nn.Conv2d(1, 1, 1),
        )
        self.lsigmoid = LearnableSigmoid(bins, 1, beta=2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.lsigmoid(self.mask_conv(self.dense_block(x)).squeeze(1).transpose(1, 2))


class PhaseDecoder(nn.Module):
    """(batch, channels, frames, bins // 2) -> phase (batch, bins, frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels)
        self.phase_conv = normalized(nn.ConvTranspose2d(channels, channels, (1, 3), (1, 2)), channels)
        self.phase_conv_r, self.phase_conv_i = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.phase_conv(self.dense_block(x))
        return torch.atan2(self.phase_conv_i(x), self.phase_conv_r(x)).squeeze(1).transpose(1, 2)


class Attention(nn.Module):
    """LayerNorm and attention of (batch, length, channels), without residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(channels)
        self.attn = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attn.num_heads
        packed = F.linear(self.layernorm(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (batch, heads, length, length)
        return self.attn.out_proj((torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2))


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """One step after another; u, delta (batch, length, channels), B, C (batch, length, state)."""
    h, outputs = u.new_zeros(u.shape[0], *A.shape), []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[:, None]
        outputs.append((h @ C_t[..., None]).squeeze(-1))
    return torch.stack(outputs, 1) + D * u


class Mixer(nn.Module):
    def __init__(self, channels: int, expand: int, state: int, recompute: bool) -> None:
        super().__init__()
        inner, self.rank, self.state, self.recompute = expand * channels, math.ceil(channels / 16), state, recompute
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        step = torch.exp(torch.rand(inner) * math.log(100) + math.log(1e-3))  # log-uniform in [0.001, 0.1]
        self.dt_proj.bias.data = step + torch.log(-torch.expm1(-step))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        dt, B, C = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        arguments = u, F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log), B, C, self.D
        y = checkpoint(scan, *arguments, use_reentrant=False) if self.recompute else scan(*arguments)
        return self.out_proj(y * F.silu(z))


class Direction(nn.Module):
    def __init__(self, channels: int, **mixer) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(channels, eps=1e-5), Mixer(channels, **mixer)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class BiMamba(nn.Module):
    """(batch, length, channels) -> (batch, length, 2 * channels): forward, backward."""

    def __init__(self, channels: int, **mixer) -> None:
        super().__init__()
        self.forward_blocks = nn.ModuleList([Direction(channels, **mixer)])
        self.backward_blocks = nn.ModuleList([Direction(channels, **mixer)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.forward_blocks[0](x), self.backward_blocks[0](x.flip(1)).flip(1)], dim=-1)


class MambAttentionBlock(nn.Module):
    """(batch, channels, frames, bins) -> the same shape; one attention for both axes."""

    def __init__(self, channels: int, heads: int, **mixer) -> None:
        super().__init__()
        self.attention = Attention(channels, heads)
        self.time_mamba, self.freq_mamba = BiMamba(channels, **mixer), BiMamba(channels, **mixer)
        self.tlinear, self.flinear = (nn.ConvTranspose1d(2 * channels, channels, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, bins = x.shape
        x = x.permute(0, 3, 2, 1).reshape(batch * bins, frames, channels)
        x = x + self.attention(x)
        x = x + self.tlinear(self.time_mamba(x).transpose(1, 2)).transpose(1, 2)
        x = x.reshape(batch, bins, frames, channels).transpose(1, 2).reshape(batch * frames, bins, channels)
        x = x + self.attention(x)
        x = x + self.flinear(self.freq_mamba(x).transpose(1, 2)).transpose(1, 2)
        return x.reshape(batch, frames, bins, channels).permute(0, 3, 1, 2)


class PlainMambAttention(nn.Module):
    """Noisy magnitude and phase -> enhanced magnitude, phase, and complex with a last axis of 2; bins is odd.

    recompute_scans: the backward pass computes the states of the scans again, which would else all be kept.
    """

    def __init__(
        self, channels: int = 64, blocks: int = 4, bins: int = 201, heads: int = 8, expand: int = 4, state: int = 16,
        recompute_scans: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        mixer = {"expand": expand, "state": state, "recompute": recompute_scans}
        self.dense_encoder = DenseEncoder(channels)
        self.TFMambAttention = nn.ModuleList(MambAttentionBlock(channels, heads, **mixer) for _ in range(blocks))
        self.mask_decoder, self.phase_decoder = MaskDecoder(channels, bins), PhaseDecoder(channels)

    def forward(self, magnitude: Tensor, phase: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.dense_encoder(torch.stack([magnitude, phase], dim=1).transpose(2, 3))
        for block in self.TFMambAttention:
            x = block(x)
        magnitude, phase = magnitude * self.mask_decoder(x), self.phase_decoder(x)
        return magnitude, phase, polar(magnitude, phase)


class PlainDiscriminator(nn.Module):
    """Clean and other compressed magnitude -> (batch, 1) in (0, 1)."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        widths, layers = [2, channels, 2 * channels, 4 * channels, 8 * channels], []
        for narrow, wide in pairwise(widths):
            conv = spectral_norm(nn.Conv2d(narrow, wide, 4, 2, 1, bias=False))
            layers += [conv, nn.InstanceNorm2d(wide, affine=True), nn.PReLU(wide)]
        layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), spectral_norm(nn.Linear(widths[-1], widths[-2]))]
        layers += [nn.Dropout(0.3), nn.PReLU(widths[-2]), spectral_norm(nn.Linear(widths[-2], 1))]
        self.layers = nn.Sequential(*layers, LearnableSigmoid(1, beta=1.0))

    def forward(self, clean: Tensor, other: Tensor) -> Tensor:
        return self.layers(torch.stack([clean, other], dim=1))
