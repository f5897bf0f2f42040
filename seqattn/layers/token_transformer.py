"""A one-layer transformer over tokens, with an optional CLS token that every token's output sees."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.layers.encoder import EncoderLayer


class TokenTransformer(nn.Module):
    """Tokens -> [CLS, tokens] + positions -> one encoder layer -> Linear on [token ; CLS] of every token.

    Args:
        token_size: width of a token in and out. channels: width inside; equal to token_size means no input projection.
        cls_token: False drops CLS (published "pointwise" variant). project_out: False returns the encoder's tokens.
    """

    def __init__(
        self, token_size: int, channels: int, heads: int, ff: int, *, project_in: bool, cls_token: bool,
        project_out: bool = True, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.project_in = nn.Linear(token_size, channels) if project_in else None
        self.cls_token = nn.Parameter(torch.randn(channels)) if cls_token else None
        self.encoder = EncoderLayer(channels, heads, ff, dropout)
        self.project_out = nn.Linear(channels * (1 + cls_token), token_size) if project_out else None

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, return_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """tokens: (batch, tokens, token_size); positions: (at least tokens + 1, channels); mask: (batch, tokens)."""
        x = tokens if self.project_in is None else self.project_in(tokens)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        x, weights = self.encoder(x + positions[: x.shape[1]], mask, return_weights)
        if self.project_out is None:
            return x, weights
        if self.cls_token is None:
            return self.project_out(x), weights
        # [token ; CLS] W = token W_token + CLS W_cls: the CLS half is computed once a sample
        on_token, on_cls = self.project_out.weight.chunk(2, dim=1)
        return F.linear(x[:, 1:], on_token) + F.linear(x[:, :1], on_cls, self.project_out.bias), weights

    @staticmethod
    def parameter_count(
        token_size: int, channels: int, ff: int, *, project_in: bool, cls_token: bool, project_out: bool = True
    ) -> int:
        """Number of trainable parameters, without building the module."""
        count = EncoderLayer.parameter_count(channels, ff) + channels * cls_token
        count += project_in * (token_size * channels + channels)
        return count + project_out * (channels * (1 + cls_token) * token_size + token_size)
