"""What mixes the steps of a sequence in both directions inside a `TimeFrequencyBlock`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqattn.kernels.linear import linear
from seqattn.layers.mamba import LBMamba, Mamba
from seqattn.layers.masking import length_mask

EPS = 1e-5


class BidirectionalScan(nn.Module):
    """W [a; b] + c with a = x + M₁(RMSNorm₁(x)) from left to right and b = x + M₂(RMSNorm₂(x)) from right to left.

    (batch, length, channels) -> the same shape (arXiv:2507.00966, section III). Each direction's last projection is
    folded into W, so that no more than the scans' outputs is ever as wide as they are.

    Args:
        window: steps a window of LBMamba; 1 is Mamba.
        d_state, d_conv, expand: of both.
    """

    def __init__(self, channels: int, *, window: int = 1, d_state: int = 16, d_conv: int = 4, expand: int = 4) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        self.mixers = nn.ModuleList(
            Mamba(channels, **sizes) if window == 1 else LBMamba(channels, window=window, **sizes) for _ in range(2)
        )
        self.norms = nn.ParameterList(torch.ones(channels) for _ in range(2))  # of the RMSNorms
        self.fusion = nn.Linear(2 * channels, channels)
        bound = 1 / math.sqrt(channels)  # as the transposed convolution that the published network has here
        nn.init.uniform_(self.fusion.weight, -bound, bound)
        nn.init.uniform_(self.fusion.bias, -bound, bound)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x: (batch, length, channels). lengths: (batch,) valid steps, None means all; the rest changes nothing."""
        normalized = F.rms_norm(x, x.shape[-1:], eps=EPS)
        weights = self.fusion.weight.chunk(2, dim=1)
        out = linear(x, weights[0] + weights[1], self.fusion.bias)
        for direction, weight in enumerate(weights):
            mixer = cast(Mamba, self.mixers[direction])
            mixed = mixer.mix(normalized, lengths, reverse=direction == 1, scale=self.norms[direction])
            out = out + linear(mixed, weight @ mixer.out_proj.weight)  # from (batch, length, expand * channels)
        return out


class BidirectionalLSTM(nn.Module):
    """A linear map of both directions of an LSTM over RMSNorm(x); hidden: its units, default 1.5 a channel."""

    def __init__(self, channels: int, *, hidden: int | None = None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=EPS)
        self.lstm = nn.LSTM(channels, hidden or 3 * channels // 2, batch_first=True, bidirectional=True)
        self.fusion = nn.Linear(2 * self.lstm.hidden_size, channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As `BidirectionalScan.forward`; every length is at least 1."""
        steps = self.norm(x)
        if lengths is None:
            return self.fusion(self.lstm(steps)[0])
        packed = pack_padded_sequence(steps, lengths.cpu(), batch_first=True, enforce_sorted=False)
        mixed, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.fusion(mixed)


class ConformerMixer(nn.Module):
    """The feed-forward and convolution modules of a Conformer (arXiv:2005.08100); the block itself has the attention.

    LayerNorm stands for the convolution module's batch normalisation, which would mix clips and padding.

    Args:
        kernel_size: odd, taps of the convolution. ff: units of each feed-forward module, default 4 a channel.
    """

    def __init__(self, channels: int, *, kernel_size: int = 31, ff: int | None = None) -> None:
        super().__init__()
        self.first, self.second = (_feed_forward(channels, ff or 4 * channels) for _ in range(2))
        self.norm_in, self.expand = nn.LayerNorm(channels), nn.Linear(channels, 4 * channels)
        self.depthwise = nn.Conv1d(
            2 * channels, 2 * channels, kernel_size, padding=kernel_size // 2, groups=2 * channels
        )
        self.norm_mid, self.reduce = nn.LayerNorm(2 * channels), nn.Linear(2 * channels, channels)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As `BidirectionalScan.forward`."""
        x = x + 0.5 * self.first(x)
        gated = F.glu(self.expand(self.norm_in(x)), dim=-1)
        if lengths is not None:
            gated = gated.where(length_mask(lengths, x.shape[1])[..., None], 0)
        local = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        x = x + self.reduce(F.silu(self.norm_mid(local)))
        return self.norm_out(x + 0.5 * self.second(x))


def _feed_forward(channels: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels))


TIME_FREQUENCY_MIXERS: dict[str, Callable[..., nn.Module]] = {
    "mamba": BidirectionalScan,
    "lbmamba": partial(BidirectionalScan, window=8),
    "lstm": BidirectionalLSTM,
    "conformer": ConformerMixer,
}
