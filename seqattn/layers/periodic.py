"""The periodic block of MPTSNet (arXiv:2503.05582): fold by each period, extract, attend, unfold, weigh, add.

Tensors are (batch, length, channels); folded ones (batch, segments, period, channels).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.layers.inception import SegmentExtractor
from seqattn.layers.token_transformer import TokenTransformer

Layout = Literal["contiguous", "interleaved"]


@dataclass
class MPTSNetAttention:
    """What the network looked at: lists hold one entry a block, inner lists one a period.

    period_weights: (batch, periods). segments: (batch, heads, tokens, tokens), token 0 is CLS unless pointwise.
    time: (batch, heads, steps + 1, steps + 1), the time-point branch. channel_gates: (batch, segments, channels).
    position_gates: (batch, segments, steps of a segment).
    """

    period_weights: list[Tensor] = field(default_factory=list)
    segments: list[list[Tensor]] = field(default_factory=list)
    time: list[Tensor] = field(default_factory=list)
    channel_gates: list[list[Tensor]] = field(default_factory=list)
    position_gates: list[list[Tensor]] = field(default_factory=list)


def fold(x: Tensor, period: int, layout: Layout = "contiguous") -> Tensor:
    """(batch, length, ...) -> (batch, segments, period, ...), zero-padded at the end to whole segments.

    "contiguous": segment j holds steps j * period, j * period + 1, ...; a view where the period divides the length.
    "interleaved": segment j holds steps j, j + segments, j + 2 * segments, ... (the published code).
    """
    segments = -(-x.shape[1] // period)
    missing = segments * period - x.shape[1]
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
    if layout == "contiguous":
        return x.unflatten(1, (segments, period))
    return x.unflatten(1, (period, segments)).transpose(1, 2)


def unfold(segments: Tensor, length: int, layout: Layout = "contiguous") -> Tensor:
    """Inverse of `fold`: (batch, segments, period, ...) -> (batch, length, ...)."""
    if layout == "interleaved":
        segments = segments.transpose(1, 2)
    return segments.flatten(1, 2)[:, :length]


class PeriodicBlock(nn.Module):
    """X + Z + sum_p w_p Y_p: time-point branch Z, and per period p the folded, extracted, attended series Y_p."""

    def __init__(
        self, channels: int, token_channels: int, periods: Sequence[int], *, hidden: int, heads: int, ff: int,
        layout: Layout, cls_token: bool, time_branch: bool, token_steps: int | None, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.periods, self.layout, self.token_steps = list(periods), layout, token_steps
        self.extractor = SegmentExtractor(channels, hidden)
        self.period_transformers = nn.ModuleList(
            TokenTransformer(
                channels * steps_of_token(period, token_steps), token_channels, heads, ff,
                project_in=True, cls_token=cls_token, dropout=dropout,
            )
            for period in periods
        )  # fmt: skip
        self.time_transformer = (
            TokenTransformer(
                channels, channels, heads, ff, project_in=False, cls_token=cls_token, project_out=cls_token,
                dropout=dropout,
            )
            if time_branch
            else None
        )  # fmt: skip

    def forward(
        self, x: Tensor, weights: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, mask_segments: bool,
        record: MPTSNetAttention | None,
    ) -> Tensor:  # fmt: skip
        """x: (batch, length, channels); weights: (batch, periods); mask: (batch, length) or None."""
        out = x
        if self.time_transformer is not None:
            branch, attention = self.time_transformer(x, tables[0], mask, record is not None)
            out = out + branch
            if record is not None and attention is not None:
                record.time.append(attention)
        masks = [_segment_mask(x, mask, period, self.layout) if mask_segments else None for period in self.periods]
        folded = [fold(x, period, self.layout) for period in self.periods]
        extracted = self.extractor(folded, [_usable(segment_mask) for segment_mask in masks])
        details: list[tuple[Tensor, Tensor, Tensor]] = []
        for index, (segments, channel_gate, position_gate) in enumerate(extracted):
            mixed, attention = self._attend(index, segments, masks[index], tables[1], record is not None)
            out = out + weights[:, index, None, None] * unfold(mixed, x.shape[1], self.layout)
            if attention is not None:
                details.append((attention, channel_gate, position_gate))
        if record is not None:
            attentions, channel_gates, position_gates = zip(*details, strict=True)
            record.period_weights.append(weights)
            record.segments.append(list(attentions))
            record.channel_gates.append(list(channel_gates))
            record.position_gates.append(list(position_gates))
        return out

    def _attend(
        self, index: int, segments: Tensor, mask: Tensor | None, table: Tensor, return_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over the segments (batch, segments, period, channels) of one period."""
        count, period, channels = segments.shape[1:]
        steps = steps_of_token(period, self.token_steps)
        if mask is not None:
            segments = segments * mask[..., None]
        tokens = _resample(segments, steps).flatten(2)  # (B, n, steps * channels)
        token_mask = None if mask is None else mask.any(-1).expand(len(tokens), count)
        tokens, weights = self.period_transformers[index](tokens, table, token_mask, return_weights)
        return _resample(tokens.unflatten(-1, (steps, channels)), period), weights


def steps_of_token(period: int, token_steps: int | None) -> int:
    return period if token_steps is None else min(period, token_steps)


def _resample(segments: Tensor, steps: int) -> Tensor:
    """(batch, segments, period, channels) -> `steps` steps a segment: averaged down, linearly interpolated up."""
    period = segments.shape[2]
    if steps == period:
        return segments
    flat = segments.flatten(0, 1).transpose(1, 2)  # (B * n, channels, period)
    flat = (
        F.adaptive_avg_pool1d(flat, steps)
        if steps < period
        else F.interpolate(flat, size=steps, mode="linear", align_corners=False)
    )
    return flat.transpose(1, 2).unflatten(0, segments.shape[:2])


def _segment_mask(x: Tensor, mask: Tensor | None, period: int, layout: Layout) -> Tensor | None:
    """(batch or 1, segments, period), False at padding; None where every folded step is real."""
    if mask is None and x.shape[1] % period == 0:
        return None
    steps = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device) if mask is None else mask
    return fold(steps, period, layout)


def _usable(mask: Tensor | None) -> Tensor | None:
    """A segment of padding only is pooled as if it were data: nothing attends to it, and an empty pool has no value."""
    return None if mask is None else mask | ~mask.any(-1, keepdim=True)


class PeriodWeights(nn.Module):
    """Weights of the periods, (batch, periods), summing to 1.

    "input": softmax(temperature * log(relative amplitude) + bias) of the network's input, one table for all blocks with
    a learned temperature and bias each; at initialisation a_p / sum(a). Does not depend on the scale of the series.
    "official": softmax of the amplitudes of the block input's channel mean, as published; close to uniform in practice.
    No gradient flows into the amplitudes. Of series longer than seq_len all steps count, at the same frequencies.
    """

    def __init__(self, kind: Literal["input", "official"], bins: Sequence[int], seq_len: int, blocks: int) -> None:
        super().__init__()
        self.kind, self.bins, self.seq_len = kind, list(bins), seq_len
        if kind == "input":
            self.temperature = nn.Parameter(torch.ones(blocks))
            self.bias = nn.Parameter(torch.zeros(blocks, len(self.bins)))

    def amplitudes(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, length, channels) -> (batch, periods): the channels' mean amplitude (2 / T) |FFT| at each bin.

        T is seq_len, or a longer series' own length; bins are those of seq_len steps. x is 0 where mask (batch, length)
        is False.
        """
        signal = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
        signal = F.pad(signal.transpose(1, 2), (0, -x.shape[1] % self.seq_len))
        folded = signal.unflatten(-1, (-1, self.seq_len)).sum(-2)  # the wave of a bin repeats every seq_len steps
        # contiguous: inductor mistakes the strides of an FFT along another axis
        spectrum = torch.fft.rfft(folded.contiguous()).abs()
        steps = (
            torch.full((1,), max(x.shape[1], self.seq_len), dtype=spectrum.dtype, device=x.device)
            if mask is None
            else mask.sum(1).clamp_min(self.seq_len).to(spectrum.dtype)
        )
        at_bins = torch.stack([spectrum[..., index] for index in self.bins], dim=-1)
        return (at_bins * (2 / steps)[:, None, None]).mean(1)

    def forward(self, block: int, x: Tensor, input_amplitudes: Tensor | None, mask: Tensor | None) -> Tensor:
        """x: the block's input, used by "official"; input_amplitudes: `amplitudes` of the series, used by "input"."""
        if input_amplitudes is None:
            return self.amplitudes(x.mean(-1, keepdim=True), mask).softmax(-1).to(x.dtype)
        relative = input_amplitudes / input_amplitudes.sum(-1, keepdim=True).clamp_min(1e-12)
        logits = self.temperature[block] * (relative + 1e-6).log() + self.bias[block]
        return logits.softmax(-1).to(x.dtype)
