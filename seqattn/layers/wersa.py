"""WERSA: multi-head self-attention of cost linear in length (arXiv:2507.08637)."""

import math
import warnings
from functools import partial
from numbers import Integral
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError, nearest
from seqattn.kernels import wersa_attention, wersa_attention_step
from seqattn.kernels.arguments import check_lengths
from seqattn.kernels.wersa.public import MAX_LEVELS
from seqattn.layers.masking import length_mask
from seqattn.layers.wavelet_gate import Align, WaveletGate

PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "levels": 4, "num_features": 128, "feature_map": "relu", "tie_features": True, "orthogonal": False,
        "qk_act": "gelu", "gate_align": "first", "out_norm": True, "learn_bandwidth": None,
    },
    "port": {
        "levels": 2, "num_features": 1024, "feature_map": "relu", "tie_features": False, "orthogonal": False,
        "qk_act": "gelu", "gate_align": "stretch", "out_norm": True, "learn_bandwidth": True,
    },
    "softmax": {
        "levels": 4, "num_features": 256, "feature_map": "exp", "tie_features": True, "orthogonal": True,
        "qk_act": None, "gate_align": "first", "out_norm": False, "learn_bandwidth": None,
    },
}  # fmt: skip
CHOICES = {
    "feature_map": ("relu", "exp"), "qk_act": ("gelu", None), "gate": ("token", "global"),
    "gate_align": ("first", "mean", "stretch"), "preset": tuple(PRESETS),
}  # fmt: skip


class WersaAttention(nn.Module):
    """Self-attention over wavelet-filtered queries and keys and random features.

    The presets: "default", ReLU features with one random matrix for queries and keys, whose limit for many features is
    attention with the arc-cosine kernel; "port", the only released module, with independent matrices, whose limit does
    not depend on content; "softmax", positive exponential features of orthogonal directions, whose limit is softmax
    attention with scale 1 / bandwidth² over the filtered queries and keys. Options left at None are the preset's, and
    qk_act, for which None means something, where it is left at "preset".

    Args:
        embed_dim: channels. num_heads: must divide embed_dim.
        levels: of the Haar filter, which mixes tokens within blocks of 2^levels: 4, "port" 2; at most 40. Once per
            layer there is a warning where 2^levels is more than the length.
        num_features: 128, "port" 1024, "softmax" 256.
        feature_map: "relu" or "exp". tie_features: one random matrix for queries and keys.
        orthogonal: random directions in orthogonal blocks.
        qk_act: on queries and keys, "gelu", or None for no activation; that of the preset "softmax" is None.
        gate: gains of the filter per "token" or "global", one set per sequence. gate_kernel, gate_align,
            gate_dropout: see `WaveletGate`.
        causal: every token sees itself and earlier ones only.
        out_norm: LayerNorm over the channels of each head, before the output projection.
        learn_bandwidth: train the features' bandwidth. None: with "exp" only, for it has no effect on "relu"; "port"
            trains it all the same.
        eps: added to the normaliser of "relu".
        seed: of the random matrices, drawn in float32, saved with the weights and not trained. They follow `to(dtype)`;
            in half precision they are rounded once, and the arithmetic on them stays in float32.

    Raises:
        SeqattnError: an option is out of range or unknown, or gate="global" is asked for with causal.
    """

    raw_bandwidth: Tensor
    random_q: Tensor
    random_k: Tensor | None

    def __init__(
        self, embed_dim: int, num_heads: int, *, levels: int | None = None, num_features: int | None = None,
        feature_map: Literal["relu", "exp"] | None = None, tie_features: bool | None = None,
        orthogonal: bool | None = None, qk_act: Literal["gelu", "preset"] | None = "preset",
        gate: Literal["token", "global"] = "token", gate_kernel: int = 33, gate_align: Align | None = None,
        causal: bool = False, out_norm: bool | None = None, learn_bandwidth: bool | None = None, eps: float = 1e-6,
        gate_dropout: float = 0.1, bias: bool = True, seed: int = 0, preset: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        given = {
            "levels": levels, "num_features": num_features, "feature_map": feature_map, "tie_features": tie_features,
            "orthogonal": orthogonal, "gate_align": gate_align, "out_norm": out_norm,
            "learn_bandwidth": learn_bandwidth,
        }  # fmt: skip
        options = _options("default" if preset is None else preset, given, qk_act)
        _check(options | {"embed_dim": embed_dim, "num_heads": num_heads, "gate": gate, "gate_kernel": gate_kernel})
        if causal and gate == "global":
            raise SeqattnError(
                'WersaAttention: gate="global" averages the whole sequence, the future too, so it cannot be causal: '
                'use gate="token"'
            )
        self.embed_dim, self.num_heads, self.causal, self.eps = embed_dim, num_heads, causal, eps
        self.warned = False  # of levels beyond the length
        self.levels, self.feature_map, self.qk_act = int(options["levels"]), options["feature_map"], options["qk_act"]
        head_dim, exponential = embed_dim // num_heads, self.feature_map == "exp"
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(embed_dim, embed_dim, bias=bias) for _ in range(4)
        )
        self.gate = WaveletGate(
            embed_dim, self.levels, gate, gate_kernel, options["gate_align"], causal, gate_dropout, ones=exponential
        )
        self.out_norm = nn.LayerNorm(head_dim) if options["out_norm"] else None
        # bandwidth = softplus(raw) + 0.1; head_dim^(1/4) is the scale 1/√head_dim of softmax attention
        raw = torch.tensor(math.log(math.expm1(head_dim**0.25 - 0.1)) if exponential else 0.0)
        if exponential if options["learn_bandwidth"] is None else options["learn_bandwidth"]:
            self.raw_bandwidth = nn.Parameter(raw)
            self.raw_bandwidth._no_weight_decay = True  # type: ignore[attr-defined]
        else:
            self.register_buffer("raw_bandwidth", raw)
        generator = torch.Generator("cpu").manual_seed(seed)
        scale = 1.0 if exponential else head_dim**-0.5
        for name, wanted in (("random_q", True), ("random_k", not options["tie_features"])):
            drawn = random_directions(head_dim, options["num_features"], options["orthogonal"], generator) * scale
            self.register_buffer(name, drawn.to(self.q_proj.weight) if wanted else None)

    def forward(
        self, x: Tensor, valid_mask: Tensor | None = None, *, lengths: Tensor | None = None, reverse: bool = False
    ) -> Tensor:
        """(batch, length, embed_dim) -> the same shape. What lies past an end changes nothing; the output is 0 there.

        valid_mask: (batch, length), True for a sequence's tokens, which come first. lengths: (batch,) of them; at most
        one of both is given. reverse: run causal attention from every sequence's end to its beginning.

        Raises:
            ValueError: a shape or lengths do not fit, both are given, or padding stands before or between valid tokens.
        """
        self._check_input(x)
        if valid_mask is not None:
            lengths = _lengths_of(valid_mask, lengths, x.shape[:2])
        elif lengths is not None:
            check_lengths(lengths, "x", x, x.shape[1], _fail)
        self._warn_of_levels(x.shape[1])
        order = _reversed(lengths, x) if reverse and self.causal else None
        x = x if order is None else x.gather(1, order.expand_as(x))
        valid = None if lengths is None else length_mask(lengths, x.shape[1])[..., None]
        x = x if valid is None else x.masked_fill(~valid, 0)
        gains = self.gate(x, lengths)
        q, k, v = self._heads(x)
        heads = wersa_attention(
            q, k, v, gains, self.random_q, self.random_k, levels=self.levels, feature_map=self.feature_map,
            bandwidth=self.bandwidth, causal=self.causal, lengths=lengths, eps=self.eps,
        )  # fmt: skip
        out = self._joined(heads)
        out = out if valid is None else out.masked_fill(~valid, 0)
        return out if order is None else out.gather(1, order.expand_as(out))

    def step(self, x: Tensor, state: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next token, (batch, embed_dim), or tokens, (batch, tokens, embed_dim), of a causal stream.

        state: as the previous call returned it, None at the start: plain tensors, of a size that does not grow any
            more once 2^levels tokens have passed.

        Returns:
            what `forward` gives at these tokens, in the shape of x, and the new state.

        Raises:
            SeqattnError: the layer is not causal. ValueError: x does not fit, or state is of a layer of other options.
        """
        if not self.causal:
            raise SeqattnError("WersaAttention: only a causal layer can stream: build it with causal=True")
        tokens = x[:, None] if x.ndim == 2 else x
        self._check_input(tokens)
        tail = tokens.new_zeros(tokens.shape[0], self.gate.reach, tokens.shape[2])
        before = None
        if state is not None:
            if "tail" not in state:
                _fail("the state has no tail: give what step returned, or None to start anew")
            if state["tail"].shape != tail.shape:
                _fail(
                    f"tail of the state has shape {tuple(state['tail'].shape)}: it must be {tuple(tail.shape)} beside "
                    "this input"
                )
            tail, before = state["tail"], {name: tensor for name, tensor in state.items() if name != "tail"}
        q, k, v = self._heads(tokens)
        heads, after = wersa_attention_step(
            before, q, k, v, self.gate.after(tail, tokens), self.random_q, self.random_k, levels=self.levels,
            feature_map=self.feature_map, bandwidth=self.bandwidth, eps=self.eps,
        )  # fmt: skip
        out = self._joined(heads)
        # a copy: a view would keep all tokens in memory, and in a saved file
        after["tail"] = torch.cat([tail, tokens], dim=1)[:, tokens.shape[1] :].clone()
        return out[:, 0] if x.ndim == 2 else out, after

    @property
    def bandwidth(self) -> Tensor:
        """softplus(raw_bandwidth) + 0.1."""
        return F.softplus(self.raw_bandwidth) + 0.1

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (batch, heads, length, head_dim)."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.qk_act == "gelu":
            q, k = F.gelu(q), F.gelu(k)
        q, k, v = (rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for rows in (q, k, v))
        return q, k, v

    def _joined(self, heads: Tensor) -> Tensor:
        rows = heads.transpose(1, 2)  # (batch, length, heads, head_dim)
        return self.out_proj((rows if self.out_norm is None else self.out_norm(rows)).flatten(2))

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            _fail(f"x has shape {tuple(x.shape)}: it must be (batch, length, {self.embed_dim})")

    def _warn_of_levels(self, length: int) -> None:
        if not torch.compiler.is_compiling() and not self.warned and 2**self.levels > length > 0:
            self.warned = True
            warnings.warn(
                f"WersaAttention: {self.levels} levels span {2**self.levels} tokens, the input has {length}: the "
                "coarsest blocks are filled up with zeros; use fewer levels",
                stacklevel=3,
            )


def random_directions(dim: int, features: int, orthogonal: bool, generator: torch.Generator) -> Tensor:
    """(dim, features) of standard normal entries; orthogonal: columns of such lengths, orthogonal in blocks of dim."""
    draw = partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
    normal = draw(dim, features)
    if not orthogonal:
        return normal
    blocks = []
    for _ in range(-(-features // dim)):
        directions, triangle = torch.linalg.qr(draw(dim, dim))
        blocks.append(directions * triangle.diagonal().sign())  # without which they are not uniform over all directions
    return torch.cat(blocks, dim=1)[:, :features] * draw(dim, features).norm(dim=0)


def _options(preset: str, given: dict[str, Any], qk_act: str | None) -> dict[str, Any]:
    if preset not in PRESETS:
        advice = nearest(preset, PRESETS) or f"; choose one of {', '.join(PRESETS)}"
        raise SeqattnError(f"WersaAttention: there is no preset {preset!r}{advice}")
    options = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    return options if qk_act == "preset" else options | {"qk_act": qk_act}


def _check(options: dict[str, Any]) -> None:
    for name in ("embed_dim", "num_heads", "levels", "num_features", "gate_kernel"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise SeqattnError(f"WersaAttention: {name} is {value}: it must be an integer of at least 1")
    if options["levels"] > MAX_LEVELS:
        raise SeqattnError(f"WersaAttention: levels is {options['levels']}: it must be at most {MAX_LEVELS}")
    for name, choices in CHOICES.items():
        if name in options and options[name] not in choices:
            listed = ", ".join(map(str, choices))
            raise SeqattnError(f"WersaAttention: {name} is {options[name]!r}: it must be one of {listed}")
    if options["embed_dim"] % options["num_heads"]:
        raise SeqattnError(
            f"WersaAttention: {options['num_heads']} heads do not divide embed_dim={options['embed_dim']}: change one "
            "of them"
        )


def _lengths_of(valid_mask: Tensor, lengths: Tensor | None, shape: torch.Size) -> Tensor:
    if lengths is not None:
        _fail("valid_mask and lengths are given: give one of them")
    if valid_mask.shape != shape or valid_mask.dtype != torch.bool:
        found = f"{valid_mask.dtype} of shape {tuple(valid_mask.shape)}"
        _fail(f"valid_mask is {found}: it must be {tuple(shape)} booleans")
    lengths = valid_mask.sum(1)
    # reading the mask back cannot be traced
    if not torch.compiler.is_compiling() and not torch.equal(length_mask(lengths, valid_mask.shape[1]), valid_mask):
        _fail(
            "valid_mask has padding before or between valid tokens, which would shift the wavelet blocks: move each "
            "sequence's valid tokens to the front and its padding to the end"
        )
    return lengths


def _reversed(lengths: Tensor | None, x: Tensor) -> Tensor:
    """(batch, length, 1): for every step its mirror image within the sequence; padding stays where it is."""
    steps = torch.arange(x.shape[1], device=x.device)[None]
    ends = torch.full_like(steps[:, :1], x.shape[1]) if lengths is None else lengths[:, None]
    mirrored = torch.where(steps < ends, ends - 1 - steps, steps)
    return mirrored.expand(x.shape[0], -1)[..., None]


def _fail(message: str) -> NoReturn:
    raise ValueError(f"WersaAttention: {message}")
