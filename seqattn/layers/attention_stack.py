"""Pre-norm transformer layers in which a sequence attends to itself or to another one (MulT, arXiv:1906.00295)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError


class MultiHeadAttention(nn.Module):
    """Attention of x to `memory`, through scaled_dot_product_attention; names are those of `nn.MultiheadAttention`.

    Args:
        channels: of both. heads: must divide channels. dropout: of attention weights.

    Raises:
        SeqattnError: heads do not divide channels.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % heads:
            raise SeqattnError(f"MultiHeadAttention: {heads} heads do not divide {channels} channels: change either")
        self.heads, self.dropout = heads, dropout
        self.in_proj = nn.Linear(channels, 3 * channels)  # rows: query, key, value
        self.out_proj = nn.Linear(channels, channels)
        for layer in (self.in_proj, self.out_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x: (batch, length, channels) -> the same shape. memory: (batch, other length, channels), None means x."""
        if memory is None:
            packed = self.in_proj(x).chunk(3, dim=-1)
        else:
            channels, weight, bias = x.shape[-1], self.in_proj.weight, self.in_proj.bias
            keys_values = F.linear(memory, weight[channels:], bias[channels:]).chunk(2, dim=-1)
            packed = (F.linear(x, weight[:channels], bias[:channels]), *keys_values)
        query, key, value = (rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in packed)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W2 relu(W1 x), 4 times as wide inside; dropout: behind the relu."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.ff1, self.ff2, self.dropout = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels), dropout
        for layer in (self.ff1, self.ff2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) -> the same shape."""
        return self.ff2(F.dropout(torch.relu(self.ff1(x)), self.dropout, self.training))


class Placement(nn.Module):
    """sqrt(channels) · x + a learned row for every step, then dropout."""

    def __init__(self, steps: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.table, self.dropout = nn.Parameter(torch.empty(steps, channels)), dropout
        self.table._no_weight_decay = True  # type: ignore[attr-defined]
        nn.init.normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, channels) -> the same shape."""
        return F.dropout(math.sqrt(x.shape[-1]) * x + self.table, self.dropout, self.training)


class AttentionLayer(nn.Module):
    """x <- x + MHA(LN(x), LN(memory)); x <- x + FeedForward(LN'(x)); the same LN for both, dropout on both branches."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(channels), MultiHeadAttention(channels, heads, dropout)
        self.ff_norm, self.feed_forward = nn.LayerNorm(channels), FeedForward(channels, dropout)
        self.dropout = dropout

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x: (batch, steps, channels) -> the same shape. memory: what x attends to, None means x."""
        attended = self.attention(self.norm(x), None if memory is None else self.norm(memory))
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.ff_norm(x)), self.dropout, self.training)


class AttentionStack(nn.Module):
    """Layers of `AttentionLayer` between learned positions and a final LayerNorm.

    Args:
        steps: of both sequences. cross: attend to another sequence, the same in every layer, rather than to oneself.
        dropout: everywhere.
    """

    def __init__(
        self, channels: int, heads: int, layers: int, steps: int, *, cross: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.position = Placement(steps, channels, dropout)
        self.memory_position = Placement(steps, channels, dropout) if cross else None
        self.layers = nn.ModuleList(AttentionLayer(channels, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x: (batch, steps, channels) -> the same shape. memory: of x's shape, with `cross` only."""
        x = self.position(x)
        if self.memory_position is not None:
            memory = self.memory_position(memory)
        for layer in self.layers:
            x = layer(x, memory)
        return self.norm(x)
