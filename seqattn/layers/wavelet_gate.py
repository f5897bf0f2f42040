"""The gains of WERSA's wavelet filter: made from the input by a small network, one scale weight a band."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.layers.masking import length_mask, masked_mean

Align = Literal["first", "mean", "stretch"]


class WaveletGate(nn.Module):
    """sigmoid(W2 Dropout(ReLU(W1 u + b1)) + b2) times learnable scale weights, for every band (arXiv:2507.08637).

    u is a depthwise convolution of the input at each token, or its mean over the sequence.

    Args:
        embed_dim: channels of the input. levels: of the filter; there are levels + 1 bands.
        kind: "token", or "global" for one set of gains per sequence.
        kernel: width of the convolution, centred, or up to one's own token with `causal`.
        align: which gain a coefficient takes: of the first token it covers, their mean, or "stretch", the nearest
            token after resampling to the next power of two steps, as in the released module, which misaligns gains
            wherever the length is not a power of two. Without effect on "global" gains, and on `causal` ones, which
            every token has for itself.
        ones: begin with gains of exactly 1 instead of 1/4.
    """

    def __init__(
        self, embed_dim: int, levels: int, kind: Literal["token", "global"], kernel: int, align: Align, causal: bool,
        dropout: float, ones: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.levels, self.align, self.causal = levels, align, causal
        self.conv = nn.Conv1d(embed_dim, embed_dim, kernel, groups=embed_dim) if kind == "token" else None
        hidden = max(1, embed_dim // 4)
        last = nn.Linear(hidden, levels + 1)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, hidden), nn.ReLU(), nn.Dropout(dropout), last)
        self.scale_weights = nn.Parameter(torch.full((levels + 1,), 2.0 if ones else 0.5))
        self.scale_weights._no_weight_decay = True  # type: ignore[attr-defined]
        if ones:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Gains as `wersa_attention` takes them: (batch, length, levels + 1), or (batch, levels + 1).

        x: (batch, length, embed_dim), 0 past the ends. lengths: (batch,), None means all.
        """
        if self.conv is None:
            mask = None if lengths is None else length_mask(lengths, x.shape[1])[..., None]
            return self._gains(masked_mean(x, mask, dim=1))
        if self.causal:
            return self.after(x.new_zeros(x.shape[0], self.reach, x.shape[2]), x)
        # a level's blocks begin at even tokens: no other gain is read unless they are averaged or resampled
        stride, length, before = 2 if self.align == "first" else 1, x.shape[1], (self.reach + 1) // 2
        # one token more than needed: torch.export sets an axis of 1 apart, which two tokens would give, and a
        # convolution may not be without output
        u = self._convolve(F.pad(x, (0, 0, before, self.reach - before + 1)), stride)
        if self.align == "first":
            return self._gains(u).index_select(1, torch.arange(length, device=x.device) // 2)
        gains = self._gains(u[:, :length])
        ends = x.new_full(x.shape[:1], length, dtype=torch.int64) if lengths is None else lengths
        place = self._averaged if self.align == "mean" else self._stretched
        return torch.stack([place(gains[..., band], band, ends) for band in range(self.levels + 1)], dim=-1)

    def after(self, tail: Tensor, x: Tensor) -> Tensor:
        """Causal gains of x (batch, tokens, embed_dim), which follows the `reach` rows of `tail`."""
        # one token more than needed: a convolution may not be without output
        rows = torch.cat([tail, x, x.new_zeros(x.shape[0], 1, x.shape[2])], dim=1)
        return self._gains(self._convolve(rows, stride=1)[:, : x.shape[1]])

    @property
    def reach(self) -> int:
        """Tokens that the convolution sees beside one's own."""
        return 0 if self.conv is None else self.conv.kernel_size[0] - 1

    def _convolve(self, x: Tensor, stride: int) -> Tensor:
        assert self.conv is not None
        convolved = F.conv1d(x.transpose(1, 2), self.conv.weight, self.conv.bias, stride, groups=x.shape[2])
        return convolved.transpose(1, 2)

    def _gains(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mlp(u)) * self.scale_weights

    def _averaged(self, gain: Tensor, band: int, ends: Tensor) -> Tensor:
        """At every token the mean gain over the valid tokens of its block."""
        length = gain.shape[1]
        # no more than one block, which may have no tokens
        block = torch.sym_min(2 ** min(band + 1, self.levels), torch.sym_max(length, 1))
        valid = length_mask(ends, length).to(gain.dtype)
        sums, counts = (
            F.pad(rows, (0, -length % block)).unflatten(1, (-1, block)).sum(-1) for rows in (gain * valid, valid)
        )
        return (sums / counts.clamp_min(1)).repeat_interleave(block, dim=1)[:, :length]

    def _stretched(self, gain: Tensor, band: int, ends: Tensor) -> Tensor:
        """At every token the gain of token ⌊j · end · 2^l / P⌋: j is its block of level l, P ≥ end a power of two."""
        block = 2 ** min(band + 1, self.levels)
        first = torch.arange(gain.shape[1], device=gain.device) // block * block
        power = 2 ** torch.log2(ends.clamp_min(1).double()).ceil().to(torch.int64)
        return gain.gather(1, first * ends[:, None] // power.clamp_min(2**self.levels)[:, None])
