"""Time attention over the vectors of a few notes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError


class NoteAttention(nn.Module):
    """For every query's time, per head a sum of note vectors weighted by the notes' times, and a linear map.

    The map is applied to the vectors before they are summed, which is exact and spares the (…, heads · width) tensor.
    Where there is no note the result is the map's bias.

    Args:
        embed_time: width of the time embeddings. heads: must divide embed_time.
        width: of a note vector. embed_dim: of the result. dropout: of attention weights.

    Raises:
        SeqattnError: heads do not divide embed_time.
    """

    def __init__(self, embed_time: int, heads: int, width: int, embed_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_time % heads:
            raise SeqattnError(f"NoteAttention: {heads} heads do not divide embed_time={embed_time}: change either")
        self.heads, self.dropout = heads, dropout
        self.query, self.key = nn.Linear(embed_time, embed_time), nn.Linear(embed_time, embed_time)
        self.out = nn.Linear(heads * width, embed_dim)  # columns: head, feature

    def forward(self, query: Tensor, key: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """(batch, queries, embed_dim).

        query: (queries, embed_time). key: (batch, notes, embed_time), of at least 1 note, which may be padding.
        vectors: (batch, notes, width), of any content where mask, (batch, notes) booleans, is False.
        """
        batch, vectors = len(vectors), vectors.masked_fill(~mask[..., None], 0)
        queries = self.query(query).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (heads, queries, dim)
        keys = self.key(key).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, notes, dim)
        maps = self.out.weight.unflatten(1, (self.heads, -1)).transpose(0, 1).flatten(0, 1)  # (heads * embed_dim, …)
        values = F.linear(vectors.to(maps.dtype), maps).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # a patient without notes attends to padding, whose values are 0
        allowed = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        heads = F.scaled_dot_product_attention(
            queries.expand(batch, -1, -1, -1), keys, values, attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return heads.sum(1) + self.out.bias

    def note_weights(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Attention (batch, heads, queries, notes), for pictures; 0 where there is no note. Arguments as `forward`."""
        queries = self.query(query).unflatten(-1, (self.heads, -1))
        keys = self.key(key).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("qhd,bnhd->bhqn", queries, keys) * queries.shape[-1] ** -0.5
        notes = mask[:, None, None]
        return scores.masked_fill(~notes, torch.finfo(scores.dtype).min).softmax(-1) * notes
