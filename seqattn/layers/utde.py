"""Unified temporal discretisation: a learned mixture of time attention and imputation (arXiv:2210.12156)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from seqattn.errors import SeqattnError
from seqattn.layers.imputation import ImputationEmbedding
from seqattn.layers.time_attention import TimeAttention

GateLevel = Literal["patient", "temporal", "hidden"]
Branches = Literal["both", "attention", "imputation"]
LEVELS = ("patient", "temporal", "hidden")


class Mixture(NamedTuple):
    """What `UTDE` gives, (batch, steps, embed_dim), and its parts; the gate is (batch, 1 or steps, 1 or embed_dim)."""

    mixed: Tensor
    attention: Tensor | None
    imputed: Tensor | None
    gate: Tensor | None


class MixtureGate(nn.Module):
    """sigmoid(W2 relu(W1 [attention; imputed])), the share of time attention.

    Args:
        level: "patient", one number a patient, from both embeddings' maxima over time; "temporal", one a step;
            "hidden", one a step and feature.
        dropout: of the gate's input.

    Raises:
        SeqattnError: the level is another word.
    """

    def __init__(self, embed_dim: int, level: GateLevel = "hidden", dropout: float = 0.0) -> None:
        super().__init__()
        if level not in LEVELS:
            raise SeqattnError(f"MixtureGate: level is {level!r}: it must be one of {', '.join(LEVELS)}")
        self.level, self.dropout = level, nn.Dropout(dropout)
        self.hidden = nn.Linear(2 * embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim if level == "hidden" else 1)
        for layer in (self.hidden, self.out):
            nn.init.xavier_normal_(layer.weight)

    def forward(self, attention: Tensor, imputed: Tensor) -> Tensor:
        """(batch, steps, embed_dim) twice -> (batch, 1 or steps, 1 or embed_dim)."""
        if self.level == "patient":
            attention, imputed = attention.amax(1, keepdim=True), imputed.amax(1, keepdim=True)
        both = self.dropout(torch.cat([attention, imputed], dim=-1))
        return torch.sigmoid(self.out(torch.relu(self.hidden(both))))


class UTDE(nn.Module):
    """g · TimeAttention + (1 - g) · ImputationEmbedding of an irregular series.

    Args:
        channels: of the series. embed_dim: of the result.
        embed_time, time_heads, flags: see `TimeAttention`. kernel_size: see `ImputationEmbedding`.
        gate: see `MixtureGate`. branches: "both", or one of them alone, without a gate.
        dropout: of observations in the attention and of the gate's input.
    """

    def __init__(
        self, channels: int, embed_dim: int, embed_time: int, *, time_heads: int = 8, gate: GateLevel = "hidden",
        branches: Branches = "both", kernel_size: int = 1, flags: Literal["seen", "density"] = "seen",
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if branches not in ("both", "attention", "imputation"):
            raise SeqattnError(f"UTDE: branches is {branches!r}: it must be one of both, attention, imputation")
        self.attention = self.imputation = self.gate = None
        if branches != "imputation":
            self.attention = TimeAttention(embed_time, time_heads, channels, embed_dim, flags=flags, dropout=dropout)
        if branches != "attention":
            self.imputation = ImputationEmbedding(2 * channels, embed_dim, kernel_size)
        if branches == "both":
            self.gate = MixtureGate(embed_dim, gate, dropout)

    def forward(
        self, query: Tensor | None, key: Tensor | None, values: Tensor, mask: Tensor, regular: Tensor,
        lengths: Tensor | None = None,
    ) -> Mixture:  # fmt: skip
        """query, key, values, mask, lengths: see `TimeAttention`; query and key may be None without it.

        regular: (batch, steps, 2 · channels) of `layers.imputation.regular_grid`, as many steps as queries.
        """
        attention = None if self.attention is None else self.attention(query, key, values, mask, lengths)
        imputed = None if self.imputation is None else self.imputation(regular)
        if attention is None or imputed is None or self.gate is None:
            mixed = imputed if attention is None else attention
            assert mixed is not None
            return Mixture(mixed, attention, imputed, None)
        gate = self.gate(attention, imputed)
        return Mixture(imputed + gate * (attention - imputed), attention, imputed, gate)
