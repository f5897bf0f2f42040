"""MPTSNet: multiscale periodic network for time-series classification (Mu, Shahzad, Zhu; AAAI 2025, arXiv:2503.05582).

    embedding -> blocks of [fold by each period -> Inception + CBAM per segment -> transformer over segments -> unfold,
    weighted sum over periods, + transformer over time points + identity -> LayerNorm] -> GELU -> head

Everything is (batch, length, channels) inside. The published network and our recommended one are the same class with
different options; each option's docstring says what the publication does.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError
from seqattn.layers.encoder import sinusoid_table
from seqattn.layers.inception import SegmentExtractor
from seqattn.layers.masking import binned_mean, length_mask
from seqattn.layers.periodic import (
    Layout,
    MPTSNetAttention,
    PeriodicBlock,
    PeriodWeights,
    fold,
    steps_of_token,
    unfold,
)  # fmt: skip
from seqattn.layers.periods import find_periods
from seqattn.layers.token_transformer import TokenTransformer

__all__ = ["MPTSNet", "MPTSNetAttention", "find_periods", "fold", "unfold"]


class Embedding(nn.Module):
    """Convolution over time without bias (kernel 3, or 1 if pointwise), sinusoidal positions, dropout."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, padding: Literal["zeros", "circular"], dropout: float
    ) -> None:
        super().__init__()
        self.padding, self.dropout = padding, nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(channels, in_channels, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """x: (batch, length, in_channels), 0 where mask (batch, length) is False -> (batch, length, channels)."""
        taps = x
        if self.weight.shape[-1] == 3:
            padded = F.pad(x, (0, 0, 1, 1))
            if self.padding == "circular":  # each series' own last step precedes its first
                ends = F.one_hot(_last_step(x, mask), x.shape[1]).to(x.dtype)  # (batch or 1, length)
                wrapped_last = (ends[..., None] * x).sum(1, keepdim=True)
                after_end = F.pad(ends, (2, 0))[..., None] * x[:, :1]
                padded = padded + after_end + F.pad(wrapped_last, (0, 0, 0, x.shape[1] + 1))
            taps = torch.cat([padded[:, :-2], x, padded[:, 2:]], dim=-1)
        embedded = F.linear(taps, self.weight.transpose(1, 2).flatten(1))
        return self.dropout(embedded + positions[: x.shape[1]])


def _last_step(x: Tensor, mask: Tensor | None) -> Tensor:
    """(batch,) index of each series' last step; (1,) where all series are whole."""
    return torch.full((1,), x.shape[1] - 1, device=x.device) if mask is None else mask.sum(1) - 1


class MPTSNet(nn.Module):
    """MPTSNet classifier.

    Args:
        in_channels, seq_len, num_classes: of the data; seq_len is the length that `bins` refer to.
        periods: in steps, from `find_periods`; each from 1 to seq_len. A series shorter than one is a single segment
            of it, filled up with padding.
        bins: frequency bin of each period; None means the bin nearest to seq_len / period.
        blocks: periodic blocks (published: 2).
        layout: "contiguous" segments are windows of one period, as the paper describes; "interleaved", as released.
        weighting: "input" or "official", see `PeriodWeights`.
        pointwise: embedding kernel 1 and no CLS tokens (published for PEMS-SF).
        head: "masked_mean" over the valid steps of each of `head_bins` equal parts of a series, for any length;
            or "flatten" (published), which fixes the length to seq_len.
        head_bins: 1 forgets where in the series something was, more keep it coarsely.
        shared_norm: one LayerNorm for all blocks (published) instead of one each.
        mask: leave padding out of pools, attention and head. False: padding enters as zeros (published).
        embed_padding: "zeros", or "circular" (published), which makes the last step a neighbour of the first.
        time_branch: the full-resolution transformer over time points, quadratic in the length.
        d_model, d_token: widths; None means clip(4 * in_channels, 64, 256) and clip(4 * d_model, 256, 512).
        hidden: width inside the segment extractor (published: 1024). heads, ff: of every transformer layer.
        dropout: after embedding and before the head. attention_dropout: inside transformer layers (published: 0).
        token_steps: longer segments are averaged to this many steps before they become a token, which bounds the
            number of parameters for long periods; None keeps every step (published).
        max_parameters: refuse to build a larger network.

    Raises:
        SeqattnError: a period out of range, no period, heads that do not divide the widths, or more than
            `max_parameters` parameters.
    """

    def __init__(
        self, in_channels: int, seq_len: int, num_classes: int, periods: Sequence[int], *,
        bins: Sequence[int] | None = None, blocks: int = 2, layout: Layout = "contiguous",
        weighting: Literal["input", "official"] = "input", pointwise: bool = False,
        head: Literal["masked_mean", "flatten"] = "masked_mean", head_bins: int = 1, shared_norm: bool = False,
        mask: bool = True, embed_padding: Literal["zeros", "circular"] = "zeros", time_branch: bool = True,
        d_model: int | None = None, d_token: int | None = None, hidden: int = 1024, heads: int = 4, ff: int = 256,
        dropout: float = 0.1, attention_dropout: float = 0.0, token_steps: int | None = None,
        max_parameters: int = 500_000_000,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_periods(periods, bins, seq_len)
        channels = d_model or min(max(4 * in_channels, 64), 256)
        token_channels = d_token or min(max(4 * channels, 256), 512)
        self.in_channels, self.seq_len, self.num_classes = in_channels, seq_len, num_classes
        self.periods, self.layout, self.pointwise, self.mask = list(periods), layout, pointwise, mask
        self.channels, self.token_channels = channels, token_channels
        if channels % heads or token_channels % heads:
            raise SeqattnError(
                f"MPTSNet: {heads} heads must divide both widths, d_model={channels} and d_token={token_channels}"
            )
        self.whole_length = head == "flatten" or layout == "interleaved" or not mask
        norms = 1 if shared_norm else blocks
        count = self.parameter_count(
            in_channels, seq_len, num_classes, periods, channels=channels, token_channels=token_channels,
            blocks=blocks, norms=norms, hidden=hidden, ff=ff, pointwise=pointwise, time_branch=time_branch,
            head_steps=seq_len if head == "flatten" else head_bins, learned_weights=weighting == "input",
            token_steps=token_steps,
        )  # fmt: skip
        if count > max_parameters:
            raise SeqattnError(
                f"MPTSNet: periods {list(periods)} with {channels} channels need {count:,} parameters, more than "
                f"max_parameters={max_parameters:,}; set token_steps (such as 32), shorten the periods or raise it"
            )
        self.embedding = Embedding(in_channels, channels, 1 if pointwise else 3, embed_padding, dropout)
        self.weights = PeriodWeights(weighting, bins or _nearest_bins(periods, seq_len), seq_len, blocks)
        self.blocks = nn.ModuleList(
            PeriodicBlock(
                channels, token_channels, periods, hidden=hidden, heads=heads, ff=ff, layout=layout,
                cls_token=not pointwise, time_branch=time_branch, token_steps=token_steps, dropout=attention_dropout,
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(norms))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * (seq_len if head == "flatten" else head_bins), num_classes)
        self.flatten_head, self.head_bins = head == "flatten", head_bins

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, MPTSNetAttention]:
        """Logits (batch, num_classes), and an `MPTSNetAttention` when `return_attention`.

        x: (batch, length, in_channels), any finite or non-finite content past each series' end.
        lengths: (batch,) valid steps, at least 1 each; None means all. Padding never changes a logit.
        A model with a flatten head, interleaved layout or mask=False takes series of at most seq_len steps: with
        lengths, what stands beyond is cut off as padding.
        """
        x, valid = self._prepare(x, lengths)
        mask = valid if self.mask else None
        length = x.shape[1]
        positions = sinusoid_table(length + 1, self.channels, x)
        token_positions = sinusoid_table(-(-length // min(self.periods)) + 1, self.token_channels, x)
        amplitudes = self.weights.amplitudes(x, valid) if self.weights.kind == "input" else None
        record = MPTSNetAttention() if return_attention else None
        x = self.embedding(x, positions, mask)
        for index, block in enumerate(self.blocks):
            if mask is not None:
                x = x * mask[..., None]
            weights = self.weights(index, x, amplitudes, mask)
            x = block(x, weights, (positions, token_positions), mask, self.mask, record)
            x = self.norms[index % len(self.norms)](x)
        x = self.dropout(F.gelu(x))
        logits = self.head(self._pool(x, mask))
        return logits if record is None else (logits, record)

    def _prepare(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Blank the padding; bring x to seq_len where the model needs it. Returns x and the valid steps or None."""
        if x.dim() != 3 or x.shape[-1] != self.in_channels:
            raise ValueError(f"MPTSNet: x has shape {tuple(x.shape)}, it must be (batch, length, {self.in_channels})")
        length = x.shape[1]
        if self.whole_length and length > self.seq_len and lengths is None:
            raise ValueError(f"MPTSNet: x has {length} steps, this model was built for at most {self.seq_len}")
        if lengths is None and self.whole_length and length < self.seq_len:
            lengths = torch.full((len(x),), length, device=x.device)
        if self.whole_length and length != self.seq_len:
            x = F.pad(x, (0, 0, 0, self.seq_len - length))  # negative padding crops
        if lengths is None:
            return x, None
        valid = length_mask(lengths, x.shape[1])
        return x.masked_fill(~valid[..., None], 0), valid

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.flatten_head:
            return (x if mask is None else x * mask[..., None]).flatten(1)
        return binned_mean(x, None if mask is None else mask.sum(1), self.head_bins).flatten(1)

    @classmethod
    def from_official(
        cls, state_dict: dict[str, Tensor], *, in_channels: int, seq_len: int, num_classes: int,
        periods: Sequence[int], pointwise: bool = False, layout: Layout = "interleaved",
    ) -> "MPTSNet":  # fmt: skip
        """Build the published network from its state dict (official parameter names); outputs are the same."""
        from seqattn.models.mptsnet_official import OFFICIAL_OPTIONS, convert_state_dict

        model = cls(
            in_channels, seq_len, num_classes, periods, pointwise=pointwise, **(OFFICIAL_OPTIONS | {"layout": layout})
        )
        model.load_state_dict(convert_state_dict(state_dict, model))
        return model.to(state_dict["fc.weight"].dtype)

    @staticmethod
    def parameter_count(
        in_channels: int, seq_len: int, num_classes: int, periods: Sequence[int], *, channels: int,
        token_channels: int, blocks: int, norms: int, hidden: int, ff: int, pointwise: bool, time_branch: bool,
        head_steps: int, learned_weights: bool, token_steps: int | None,
    ) -> int:  # fmt: skip
        """Number of trainable parameters, without building the network (specification: table of shapes and counts)."""
        cls_token = not pointwise
        block = SegmentExtractor.parameter_count(channels, hidden)
        block += sum(
            TokenTransformer.parameter_count(
                channels * steps_of_token(period, token_steps), token_channels, ff, project_in=True,
                cls_token=cls_token,
            )
            for period in periods
        )  # fmt: skip
        block += time_branch * TokenTransformer.parameter_count(
            channels, channels, ff, project_in=False, cls_token=cls_token, project_out=cls_token
        )
        embedding = in_channels * channels * (1 if pointwise else 3)
        head = (channels * head_steps + 1) * num_classes
        weights = learned_weights * blocks * (1 + len(periods))
        return embedding + blocks * block + norms * 2 * channels + head + weights


def _nearest_bins(periods: Sequence[int], seq_len: int) -> list[int]:
    """The bin in 0 ... seq_len // 2 - 1 nearest to seq_len / period, the lower one on a tie (published rule)."""
    top = max(seq_len // 2 - 1, 0)
    return [min(top, math.ceil(seq_len / period - 0.5)) for period in periods]


def _check_periods(periods: Sequence[int], bins: Sequence[int] | None, seq_len: int) -> None:
    if not periods:
        raise SeqattnError(f"MPTSNet: no period in a series of {seq_len} steps; give periods, or longer series")
    for period in periods:
        if not 1 <= period <= seq_len:
            raise SeqattnError(
                f"MPTSNet: period {period} does not fit series of at most {seq_len} steps; "
                f"give periods between 1 and {seq_len}"
            )
    if bins is not None and (len(bins) != len(periods) or not all(0 <= index <= seq_len // 2 for index in bins)):
        raise SeqattnError(f"MPTSNet: bins {list(bins)} do not belong to periods {list(periods)} of {seq_len} steps")
