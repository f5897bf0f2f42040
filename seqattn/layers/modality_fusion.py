"""From notes and series, each (batch, steps, channels), to one vector: what the interleaved fusion is compared with."""

from typing import Literal

import torch
from torch import Tensor, nn

from seqattn.layers.attention_stack import AttentionStack
from seqattn.layers.interleaved_fusion import InterleavedFusion
from seqattn.layers.step_encoders import FlatCNN, LastOfAttention, StatesOfLSTM, step_encoder

FUSIONS = ("interleaved", "mult", "concat", "mag", "tensor")
TINY = 1e-6  # keeps norms away from 0
StepEncoder = LastOfAttention | StatesOfLSTM | FlatCNN


class ConcatFusion(nn.Module):
    """[vector of the notes; vector of the series], each of an encoder of `layers.step_encoders`."""

    def __init__(self, notes: StepEncoder, series: StepEncoder) -> None:
        super().__init__()
        self.notes, self.series, self.width = notes, series, notes.width + series.width

    def forward(self, notes: Tensor, series: Tensor) -> Tensor:
        return torch.cat([self.notes(notes), self.series(series)], dim=-1)


class TensorFusion(nn.Module):
    """A linear map of all products of an entry of [notes; 1] and one of [series; 1] (arXiv:1707.07250), then relu.

    channels: of the result.
    """

    def __init__(self, notes: StepEncoder, series: StepEncoder, channels: int) -> None:
        super().__init__()
        self.notes, self.series, self.width = notes, series, channels
        self.out = nn.Linear((notes.width + 1) * (series.width + 1), channels)

    def forward(self, notes: Tensor, series: Tensor) -> Tensor:
        first, second = (torch.cat([x, x.new_ones(len(x), 1)], -1) for x in (self.notes(notes), self.series(series)))
        return torch.relu(self.out((first[:, :, None] * second[:, None]).flatten(1)))


class MagFusion(nn.Module):
    """Notes shifted by what the series says at the same step (MAG, arXiv:1908.05787), then an encoder.

    h = relu(W_g [notes; series]) · W_s series; notes <- LN(notes + min(shift |notes| / |h|, 1) h), with the norms of
    every patient's step by itself.

    shift: the largest length of the shift in lengths of the notes' vector.
    """

    def __init__(self, encoder: StepEncoder, channels: int, dropout: float = 0.0, shift: float = 1.0) -> None:
        super().__init__()
        self.gate, self.map = nn.Linear(2 * channels, channels), nn.Linear(channels, channels)
        self.norm, self.dropout = nn.LayerNorm(channels), nn.Dropout(dropout)
        self.encoder, self.width, self.shift = encoder, encoder.width, shift

    def forward(self, notes: Tensor, series: Tensor) -> Tensor:
        moved = torch.relu(self.gate(torch.cat([notes, series], dim=-1))) * self.map(series)
        lengths = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (notes, moved)]
        scale = (self.shift * lengths[0] / (lengths[1] + TINY)).clamp_max(1)
        return self.encoder(self.dropout(self.norm(notes + scale * moved)))


class MultFusion(nn.Module):
    """Each modality attends to the other, then to itself, and the last steps are joined (MulT, arXiv:1906.00295).

    cross_layers, layers: of the two kinds of stacks.
    """

    def __init__(
        self, channels: int, heads: int, layers: int, cross_layers: int, steps: int, dropout: float = 0.0
    ) -> None:
        super().__init__()

        def stack(depth: int, cross: bool) -> AttentionStack:
            return AttentionStack(channels, heads, depth, steps, cross=cross, dropout=dropout)

        self.notes_from_series, self.series_from_notes = stack(cross_layers, True), stack(cross_layers, True)
        self.notes_memory, self.series_memory = stack(layers, False), stack(layers, False)
        self.width = 2 * channels

    def forward(self, notes: Tensor, series: Tensor) -> Tensor:
        """Two tensors (batch, steps, channels) -> (batch, 2 · channels), notes first."""
        mixed_notes = self.notes_memory(self.notes_from_series(notes, series))
        mixed_series = self.series_memory(self.series_from_notes(series, notes))
        return torch.cat([mixed_notes[:, -1], mixed_series[:, -1]], dim=-1)


Trunk = StepEncoder | InterleavedFusion | MultFusion | ConcatFusion | MagFusion | TensorFusion


def build_trunk(
    fusion: str | None, encoder: str, channels: int, heads: int, layers: int, cross_layers: int, steps: int, *,
    kernel_size: int = 1, lstm_state: Literal["both", "backward"] = "both", dropout: float = 0.0,
) -> Trunk:  # fmt: skip
    """The fusion of that name, or with None an encoder of one modality; `width` is that of the vector it gives.

    encoder: of the series, or of what the fusion joined; notes beside an encoded series have an attention stack.
    """
    if fusion == "interleaved":
        return InterleavedFusion(channels, heads, cross_layers, steps, dropout)
    if fusion == "mult":
        return MultFusion(channels, heads, layers, cross_layers, steps, dropout)
    encoded = step_encoder(
        encoder, channels, heads, layers, steps, kernel_size=kernel_size, lstm_state=lstm_state, dropout=dropout
    )
    if fusion is None:
        return encoded
    if fusion == "mag":
        return MagFusion(encoded, channels, dropout)
    notes = LastOfAttention(channels, heads, layers, steps, dropout)
    return ConcatFusion(notes, encoded) if fusion == "concat" else TensorFusion(notes, encoded, channels)
