"""A classifier of sequences around any sequence layer: embedding -> pre-norm residual blocks -> masked mean -> linear.

The backbone is LBMamba's (arXiv:2506.15976) on one axis: no MLP behind a scan, no class token, and scans that run left
to right in every even layer and right to left, each sequence from its own end, in every odd one. Everything is
(batch, length, channels) inside.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError, nearest
from seqattn.layers.drop_path import DropPath
from seqattn.layers.encoder import sinusoid_table
from seqattn.layers.mamba import LBMamba, Mamba
from seqattn.layers.masking import length_mask, masked_mean
from seqattn.layers.patch_embedding import PatchEmbedding
from seqattn.layers.self_attention import SelfAttention
from seqattn.layers.wersa import WersaAttention

EPS = 1e-5  # of every RMSNorm


class Mixer(NamedTuple):
    """A sequence layer: `layer(d_model, **options)(x, lengths=…, reverse=…)`, and the MLP it wants behind it."""

    layer: Callable[..., nn.Module]
    mlp_ratio: float


def _wersa(d_model: int, heads: int = 4, **options: Any) -> WersaAttention:
    # every layer has a random matrix of its own, from torch's seed
    return WersaAttention(d_model, heads, seed=int(torch.randint(2**31, (), device="cpu")), **options)


MIXERS = {
    "mamba": Mixer(Mamba, 0),
    "lbmamba": Mixer(LBMamba, 0),
    "attention": Mixer(SelfAttention, 2),
    "wersa": Mixer(_wersa, 1.6),
}


class MLP(nn.Module):
    """Linear -> GELU -> Linear, per token."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d_model, hidden), nn.Linear(hidden, d_model)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(F.gelu(self.in_proj(x)))


class ResidualBlock(nn.Module):
    """x + mixer(RMSNorm(x)), and with an MLP + mlp(RMSNorm(·)) behind it; drop path on both branches.

    x is float32 at least, whatever the layers compute in.
    """

    def __init__(self, d_model: int, mixer: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(d_model, eps=EPS), mixer
        self.mlp_norm = nn.RMSNorm(d_model, eps=EPS) if mlp_ratio else None
        self.mlp = MLP(d_model, round(mlp_ratio * d_model)) if mlp_ratio else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
        """x: (batch, tokens, d_model); lengths: (batch,) or None."""
        dtype = self.norm.weight.dtype
        x = x + self.drop_path(self.mixer(self.norm(x.to(dtype)), lengths=lengths, reverse=reverse))
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.drop_path(self.mlp(self.mlp_norm(x.to(dtype))))
        return x


class SequenceClassifier(nn.Module):
    """Logits of whole sequences; padding never changes one.

    Args:
        in_channels, num_classes: of the data.
        mixer: "mamba", "lbmamba", "wersa" or "attention" (scaled_dot_product_attention, the baseline): a key of
            `MIXERS`.
        d_model: width. depth: layers; odd ones scan from the right, so an even depth sees both sides alike.
        patch_size: steps of a token; 1 is a pointwise embedding. A last, partial patch is filled with zeros.
        positions: "none", which a scan does not need; "sinusoidal", for any length; or "learned", a table of
            `max_length` steps.
        max_length: steps of the longest sequence, for learned positions.
        dropout: after the embedding and before the head.
        drop_path: of the last layer; layer i of 0 … depth - 1 has drop_path · i / (depth - 1).
        mlp_ratio: hidden width of an MLP behind every mixer, in d_model; 0 for none. None: 0 for scans, which widen
            and gate by themselves, 2 for "attention" and 1.6 for "wersa", which then have about as many parameters as
            Mamba of expand 2 (8 d_model² a layer).
        mixer_options: arguments of the mixer's layer, such as d_state, d_conv, expand, window, heads, levels, preset.

    Weights that add to the residual stream are divided by the root of the number of such additions.

    Raises:
        SeqattnError: the mixer is unknown, learned positions lack max_length, or heads do not divide d_model.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, mixer: str = "mamba", d_model: int = 64, depth: int = 4,
        patch_size: int = 1, positions: Literal["none", "sinusoidal", "learned"] = "none",
        max_length: int | None = None, dropout: float = 0.0, drop_path: float = 0.0, mlp_ratio: float | None = None,
        **mixer_options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if mixer not in MIXERS:
            advice = nearest(mixer, MIXERS) or f"; choose one of {', '.join(MIXERS)}"
            raise SeqattnError(f"SequenceClassifier: there is no mixer {mixer!r}{advice}")
        if positions == "learned" and max_length is None:
            raise SeqattnError("SequenceClassifier: learned positions need max_length, the longest sequence's steps")
        layer, usual_ratio = MIXERS[mixer]
        ratio = usual_ratio if mlp_ratio is None else mlp_ratio
        self.in_channels, self.positions = in_channels, positions
        self.max_length = max_length if positions == "learned" else None
        self.embedding = PatchEmbedding(in_channels, d_model, patch_size)
        if positions == "learned" and max_length is not None:
            self.position_table = nn.Parameter(torch.empty(-(-max_length // patch_size), d_model))
            self.position_table._no_weight_decay = True  # type: ignore[attr-defined]
            nn.init.trunc_normal_(self.position_table, std=0.02)
        rates = [drop_path * index / (depth - 1) for index in range(depth)] if depth > 1 else [drop_path]
        self.blocks = nn.ModuleList(
            ResidualBlock(d_model, layer(d_model, **mixer_options), ratio, rate) for rate in rates
        )
        self.norm, self.dropout = nn.RMSNorm(d_model, eps=EPS), nn.Dropout(dropout)
        self.head = nn.Linear(d_model, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self._scale_residual_branches(additions=depth * (2 if ratio else 1))

    @torch.no_grad()
    def _scale_residual_branches(self, additions: int) -> None:
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("out_proj.weight"):
                parameter.div_(additions**0.5)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (batch, num_classes).

        x: (batch, length, in_channels), any finite or non-finite content past each sequence's end.
        lengths: (batch,) valid steps, at least 1 each; None means all.

        Raises:
            ValueError: the shape is another, or x is longer than the table of learned positions.
        """
        x = self._checked(x, lengths)
        tokens, lengths = self.embedding(x, lengths)
        tokens = self.dropout(self._with_positions(tokens))
        residual = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        for index, block in enumerate(self.blocks):
            residual = block(residual, lengths, reverse=index % 2 == 1)
        tokens = self.norm(residual.to(self.norm.weight.dtype))
        mask = None if lengths is None else length_mask(lengths, tokens.shape[1])[..., None]
        return self.head(self.dropout(masked_mean(tokens, mask, dim=1)))

    def _checked(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x with blank padding."""
        if x.dim() != 3 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"SequenceClassifier: x has shape {tuple(x.shape)}, it must be (batch, length, {self.in_channels})"
            )
        if self.max_length is not None and x.shape[1] > self.max_length:
            raise ValueError(
                f"SequenceClassifier: x has {x.shape[1]} steps, the learned positions {self.max_length}: shorten x, or "
                "build the model with a larger max_length or other positions"
            )
        return x if lengths is None else x.masked_fill(~length_mask(lengths, x.shape[1])[..., None], 0)

    def _with_positions(self, tokens: Tensor) -> Tensor:
        if self.positions == "learned":
            return tokens + self.position_table[: tokens.shape[1]]
        if self.positions == "sinusoidal":
            return tokens + sinusoid_table(tokens.shape[1], tokens.shape[2], tokens)
        return tokens
