"""Interleaved self- and cross-attention of two modalities (arXiv:2210.12156, section 3.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.layers.attention_stack import FeedForward, MultiHeadAttention, Placement


class InterleavedLayer(nn.Module):
    """Both modalities attend to themselves, then to each other, then pass their feed-forward parts.

    Pre-norm and residual; weights of their own for either. dropout: of attention weights, hidden units and branches.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()

        def pair(make: type[nn.Module], *arguments: int | float) -> nn.ModuleList:
            return nn.ModuleList(make(channels, *arguments) for _ in range(2))

        self.self_norms, self.self_attentions = pair(nn.LayerNorm), pair(MultiHeadAttention, heads, dropout)
        self.cross_norms, self.cross_attentions = pair(nn.LayerNorm), pair(MultiHeadAttention, heads, dropout)
        self.ff_norms, self.feed_forwards = pair(nn.LayerNorm), pair(FeedForward, dropout)
        self.dropout = dropout

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Two tensors (batch, steps, channels) -> two of the same shape."""
        first, second = (norm(x) for norm, x in zip(self.self_norms, pair, strict=True))
        pair = self._added(pair, self.self_attentions[0](first), self.self_attentions[1](second))
        first, second = (norm(x) for norm, x in zip(self.cross_norms, pair, strict=True))
        pair = self._added(pair, self.cross_attentions[0](first, second), self.cross_attentions[1](second, first))
        first, second = (norm(x) for norm, x in zip(self.ff_norms, pair, strict=True))
        return self._added(pair, self.feed_forwards[0](first), self.feed_forwards[1](second))

    def _added(self, pair: tuple[Tensor, Tensor], *branches: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (x + F.dropout(y, self.dropout, self.training) for x, y in zip(pair, branches, strict=True))
        return first, second


class InterleavedFusion(nn.Module):
    """Notes and series through layers of `InterleavedLayer`; the vector is the last step of both, notes first.

    Both have the same learned positions. dropout: everywhere.
    """

    def __init__(self, channels: int, heads: int, layers: int, steps: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.position = Placement(steps, channels, dropout)
        self.layers = nn.ModuleList(InterleavedLayer(channels, heads, dropout) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.width = 2 * channels

    def sequences(self, notes: Tensor, series: Tensor) -> tuple[Tensor, Tensor]:
        """Both modalities, each (batch, steps, channels), after the last layer's norms."""
        pair = self.position(notes), self.position(series)
        for layer in self.layers:
            pair = layer(pair)
        return self.norms[0](pair[0]), self.norms[1](pair[1])

    def forward(self, notes: Tensor, series: Tensor) -> Tensor:
        """Two tensors (batch, steps, channels) -> (batch, 2 · channels)."""
        return torch.cat([x[:, -1] for x in self.sequences(notes, series)], dim=-1)
