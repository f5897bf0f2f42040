"""Multi-time attention over irregular observations (mTAND, arXiv:2101.10318): rows at any times to a regular grid."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError
from seqattn.kernels import time_attention


class TimeAttention(nn.Module):
    """Every channel's average over its own observations, weighted by how a query's time attends to theirs.

    Per head, A = softmax of the scaled products of projected time embeddings over the rows that observe a channel, the
    same scores for every channel; a channel never observed gives 0. The heads' averages, and per head a flag of every
    channel, pass through one linear map.

    Args:
        embed_time: width of the time embeddings. heads: must divide embed_time.
        channels: of the values. embed_dim: of the result.
        flags: "seen", whether a channel was observed at all, which is what attention over the mask itself comes to;
            "density", the share of a query's attention, over rows with any observation, that lies on rows where the
            channel was observed.
        dropout: of an observation's weight, for all heads and queries at once; its share of the normaliser stays.

    Raises:
        SeqattnError: heads do not divide embed_time, or flags is another word.
    """

    def __init__(
        self, embed_time: int, heads: int, channels: int, embed_dim: int, *,
        flags: Literal["seen", "density"] = "seen", dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if embed_time % heads:
            raise SeqattnError(f"TimeAttention: {heads} heads do not divide embed_time={embed_time}: change either")
        if flags not in ("seen", "density"):
            raise SeqattnError(f'TimeAttention: flags is {flags!r}: it must be "seen" or "density"')
        self.heads, self.channels, self.flags, self.dropout = heads, channels, flags, dropout
        self.query, self.key = nn.Linear(embed_time, embed_time), nn.Linear(embed_time, embed_time)
        self.out = nn.Linear(heads * 2 * channels, embed_dim)  # columns: head, (value, flag), channel

    def forward(
        self, query: Tensor, key: Tensor, values: Tensor, mask: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """(batch, queries, embed_dim).

        query: (queries, embed_time) embeddings of the queries' times. key: (batch, length, embed_time) of the rows'.
        values: (batch, length, channels), of any content where not observed. mask: booleans, True where observed.
        lengths: (batch,) rows of each series, None means all; mask must be False past them.
        """
        queries, keys = self._projected(query, key)
        values = values.to(torch.promote_types(keys.dtype, torch.float32))
        dropped = F.dropout(values, self.dropout, self.training)
        if self.flags == "density":
            rows = mask.any(-1, keepdim=True).expand_as(mask)
            dropped = torch.cat([dropped, mask.to(dropped.dtype)], dim=-1)
            averages = time_attention(queries, keys, dropped, torch.cat([mask, rows], dim=-1), lengths=lengths)
            return self.out(averages.flatten(2))
        averages = time_attention(queries, keys, dropped, mask, lengths=lengths)  # (batch, queries, heads, channels)
        weight = self.out.weight.unflatten(1, (self.heads, 2, self.channels))
        flags = F.linear(mask.any(1).to(averages.dtype), weight[:, :, 1].sum(1), self.out.bias)  # the same in all heads
        return F.linear(averages.flatten(2), weight[:, :, 0].flatten(1)) + flags[:, None]

    def row_weights(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """(batch, heads, queries, length): attention over the rows with any observation, for pictures."""
        queries, keys = self._projected(query, key)
        scores = torch.einsum("qhd,blhd->bhql", queries, keys) * queries.shape[-1] ** -0.5
        rows = mask.any(-1)[:, None, None]
        return scores.masked_fill(~rows, torch.finfo(scores.dtype).min).softmax(-1) * rows

    def _projected(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(queries, heads, dim) and (batch, length, heads, dim)."""
        queries, keys = self.query(query), self.key(key)
        return queries.unflatten(-1, (self.heads, -1)), keys.unflatten(-1, (self.heads, -1))
