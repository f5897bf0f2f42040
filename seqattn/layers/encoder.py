"""Post-norm transformer encoder layer over scaled_dot_product_attention, and the sinusoidal position table."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid_table(length: int, channels: int, like: Tensor) -> Tensor:
    """Sinusoidal positions (length, channels), computed in float64 and given in the type and device of `like`.

    Entry (t, 2i) is sin(t * 10000^(-2i / channels)), entry (t, 2i + 1) the cosine (arXiv:1706.03762, section 3.5).
    """
    position = torch.arange(length, device=like.device, dtype=torch.float64)[:, None]
    rate = torch.exp(
        torch.arange(0, channels, 2, device=like.device, dtype=torch.float64) * (-math.log(10000.0) / channels)
    )
    angle = position * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[:, :channels].to(like.dtype)


class EncoderLayer(nn.Module):
    """x <- LN(x + MHA(x)); x <- LN(x + W2 ReLU(W1 x)).

    Args:
        channels: model width. heads: must divide channels. ff: hidden width of the feed-forward part.
        dropout: on attention weights and on both residual branches.
    """

    def __init__(self, channels: int, heads: int, ff: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"EncoderLayer: {heads} heads do not divide {channels} channels")
        self.heads, self.dropout = heads, dropout
        self.in_proj = nn.Linear(channels, 3 * channels)  # rows: query, key, value
        self.out_proj = nn.Linear(channels, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.ff1, self.ff2 = nn.Linear(channels, ff), nn.Linear(ff, channels)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def attend(self, x: Tensor, key_mask: Tensor | None, return_weights: bool) -> tuple[Tensor, Tensor | None]:
        """Multi-head self-attention; weights (batch, heads, tokens, tokens) only when asked for."""
        query, key, value = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        attend_to = None if key_mask is None else key_mask[:, None, None, :]
        weights = None
        if return_weights:
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
            if attend_to is not None:
                scores = scores.masked_fill(~attend_to, -math.inf)
            weights = scores.softmax(-1)
            out = F.dropout(weights, self.dropout, self.training) @ value
        else:
            dropout = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=attend_to, dropout_p=dropout)
        return self.out_proj(out.transpose(-3, -2).flatten(-2)), weights

    def forward(
        self, x: Tensor, key_mask: Tensor | None = None, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x: (batch, tokens, channels); key_mask: (batch, tokens), False where a token must not be attended to."""
        attended, weights = self.attend(x, key_mask, return_weights)
        x = self.norm1(x + F.dropout(attended, self.dropout, self.training))
        transformed = self.ff2(F.relu(self.ff1(x)))
        return self.norm2(x + F.dropout(transformed, self.dropout, self.training)), weights

    @staticmethod
    def parameter_count(channels: int, ff: int) -> int:
        """Number of trainable parameters, without building the layer."""
        return 4 * channels * channels + 9 * channels + 2 * channels * ff + ff
