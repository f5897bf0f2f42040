"""Multi-head self-attention as a sequence mixer: the baseline beside the scans."""

from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError
from seqattn.layers.masking import length_mask


class SelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V per head (arXiv:1706.03762, section 3.2), through torch's scaled_dot_product_attention.

    Args:
        d_model: channels. heads: must divide d_model.

    Raises:
        SeqattnError: the heads do not divide d_model.
    """

    def __init__(self, d_model: int, heads: int = 4) -> None:
        super().__init__()
        if d_model % heads:
            raise SeqattnError(f"SelfAttention: {heads} heads do not divide d_model={d_model}: change one of them")
        self.heads = heads
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)  # rows: query, key, value
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None, reverse: bool = False) -> Tensor:
        """x: (batch, length, d_model) -> the same shape. What lies past an end changes nothing; the output is 0 there.

        lengths: (batch,) valid steps, None means all. reverse: changes nothing, attention has no direction.
        """
        mask = None if lengths is None else length_mask(lengths, x.shape[1])  # (B, L)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        query, key, value = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d)
        attend_to = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attend_to)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out if mask is None else out.masked_fill(~mask[..., None], 0)
