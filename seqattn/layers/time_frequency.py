"""The trunk of MambAttention (arXiv:2507.00966): attention and a mixer along time, then along frequency."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqattn.kernels.self_attention import self_attention
from seqattn.layers.linear import Linear
from seqattn.layers.time_frequency_mixers import TIME_FREQUENCY_MIXERS

PIECE = 8192
"""Steps, of all sequences together, that a CPU does at a time."""


class NormalizedAttention(nn.Module):
    """LayerNorm and multi-head self-attention, without a residual.

    channels: of the input, a multiple of heads. Parameter names are those of `nn.MultiheadAttention`.
    """

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.in_proj = Linear(channels, 3 * channels)  # rows: query, key, value
        self.out_proj = Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x: (batch, length, channels), finite also past an end. lengths: (batch,) valid steps, None means all."""
        packed = self.in_proj(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        mixed = self_attention(packed, lengths)
        return self.out_proj(mixed.flatten(2))


class TimeFrequencyBlock(nn.Module):
    """(batch, frames, bins, channels) -> the same shape: one step along time, one along frequency.

    A step is x + Attention(x), then x + Mixer(x), or the other way round.

    Args:
        mixer: a key of `TIME_FREQUENCY_MIXERS`; mixer_options: of its class.
        heads: of the attention. attention: whether both steps have the same attention module, one each, or none.
        attention_position: of the attention within a step, before the mixer or after it.
        checkpoint: keep only the input of each mixer for the backward pass, which computes the mixer once more: less
            than half the memory, a fifth more time.
    """

    def __init__(
        self, channels: int, *, mixer: str = "mamba", heads: int = 8,
        attention: Literal["shared", "separate", "none"] = "shared",
        attention_position: Literal["before", "after"] = "before", checkpoint: bool = False, **mixer_options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        count = {"shared": 1, "separate": 2, "none": 0}[attention]
        self.attentions = nn.ModuleList(NormalizedAttention(channels, heads) for _ in range(count))
        self.time_mixer = TIME_FREQUENCY_MIXERS[mixer](channels, **mixer_options)
        self.frequency_mixer = TIME_FREQUENCY_MIXERS[mixer](channels, **mixer_options)
        self.attention_position, self.checkpoint = attention_position, checkpoint

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """x: (batch, frames, bins, channels), finite also past an end. frames: (batch,) valid ones, None means all."""
        batch, steps, bins, channels = x.shape
        rows = x.transpose(1, 2).reshape(batch * bins, steps, channels)
        lengths = None if frames is None else frames.repeat_interleave(bins)
        first, last = (self.attentions[0], self.attentions[-1]) if self.attentions else (None, None)
        rows = self._pieces(rows, first, self.time_mixer, lengths)
        rows = rows.unflatten(0, (batch, bins)).transpose(1, 2).reshape(batch * steps, bins, channels)
        return self._pieces(rows, last, self.frequency_mixer, None).view(batch, steps, bins, channels)

    def _pieces(self, x: Tensor, attention: nn.Module | None, mixer: nn.Module, lengths: Tensor | None) -> Tensor:
        """`_step` of a few sequences at a time, on a CPU as many as its cache holds."""
        if x.device.type != "cpu" or x.numel() == 0 or torch.compiler.is_compiling():
            return self._step(x, attention, mixer, lengths)
        rows = max(1, PIECE // x.shape[1])
        ends = [None] * -(-len(x) // rows) if lengths is None else lengths.split(rows)
        pieces = zip(x.split(rows), ends, strict=True)
        return torch.cat([self._step(piece, attention, mixer, valid) for piece, valid in pieces])

    def _step(self, x: Tensor, attention: nn.Module | None, mixer: nn.Module, lengths: Tensor | None) -> Tensor:
        if attention is not None and self.attention_position == "before":
            x = x + attention(x, lengths)
        if self.checkpoint and torch.is_grad_enabled():
            x = x + checkpoint(mixer, x, lengths, use_reentrant=False, preserve_rng_state=False)
        else:
            x = x + mixer(x, lengths)
        if attention is not None and self.attention_position == "after":
            x = x + attention(x, lengths)
        return x
