"""From the published MPTSNet's parameter names (commit 46990d3 of the authors' repository) to ours."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from seqattn.models.mptsnet import MPTSNet

OFFICIAL_OPTIONS: dict[str, Any] = {
    "weighting": "official",
    "head": "flatten",
    "shared_norm": True,
    "mask": False,
    "embed_padding": "circular",
    "max_parameters": 10_000_000_000,
}
"""Constructor options of `MPTSNet` under which it computes what the published network computes."""

Reader = Callable[[str], Tensor]


def convert_state_dict(state_dict: dict[str, Tensor], model: "MPTSNet") -> dict[str, Tensor]:
    """Return `state_dict` under the names and layouts of `model`; sinusoid tables and unused layers are left out.

    Raises:
        ValueError: a parameter is missing, or periods and sizes are not those of the state dict.
    """

    def read(name: str) -> Tensor:
        if name not in state_dict:
            raise ValueError(f"MPTSNet.from_official: the state dict has no entry {name!r}; is it an MPTSNet's?")
        return state_dict[name].detach()

    channels = model.channels
    head = read("fc.weight").unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)  # channel-major to time-major
    out = {
        "embedding.weight": read("enc_embedding.value_embedding.tokenConv.weight"),
        "norms.0.weight": read("layer_norm.weight"),
        "norms.0.bias": read("layer_norm.bias"),
        "head.weight": head,
        "head.bias": read("fc.bias"),
    }
    held = {name.split(".")[3] for name in state_dict if name.startswith("model.0.transformers.")}
    if len(held) != len(model.periods):
        raise ValueError(f"MPTSNet.from_official: the state dict has {len(held)} periods, periods={model.periods}")
    for block in range(len(model.blocks)):
        source, target = f"model.{block}", f"blocks.{block}"
        out |= _convolutions(read, source, target)
        out |= _encoder(read, f"{source}.transformer", f"{target}.time_transformer")
        if f"{target}.time_transformer.cls_token" in model.state_dict():
            out |= _tokens(read, f"{source}.transformer", f"{target}.time_transformer")
        for index in range(len(model.periods)):
            names = f"{source}.transformers.{index}", f"{target}.period_transformers.{index}"
            out |= _encoder(read, *names)
            out |= _tokens(read, *names, token_channels=channels, state_dict=state_dict)
    for name, value in model.state_dict().items():
        if out[name].shape != value.shape:
            shapes = f"{name} is {tuple(out[name].shape)} in the state dict and {tuple(value.shape)} in the network"
            raise ValueError(f"MPTSNet.from_official: {shapes}; check periods {model.periods} and the other sizes")
    return out


def _convolutions(read: Reader, source: str, target: str) -> dict[str, Tensor]:
    out = {}
    for layer, name in ((0, "expand"), (2, "reduce")):
        prefix, gate = f"{source}.cnn.{layer}", f"{target}.extractor.{name}_gate"
        for kernel in range(6):
            weight = read(f"{prefix}.kernels.{kernel}.weight")  # (out, in, taps)
            weight = weight.permute(2, 1, 0) if name == "expand" else weight.permute(2, 0, 1).flip(0)
            out[f"{target}.extractor.{name}.kernels.{kernel}"] = weight.contiguous()
            out[f"{target}.extractor.{name}.biases.{kernel}"] = read(f"{prefix}.kernels.{kernel}.bias")
        out[f"{gate}.squeeze.weight"] = read(f"{prefix}.CBAMBlock.channel_attention.fc.0.weight").squeeze(-1)
        out[f"{gate}.excite.weight"] = read(f"{prefix}.CBAMBlock.channel_attention.fc.2.weight").squeeze(-1)
        out[f"{gate}.position"] = read(f"{prefix}.CBAMBlock.spatial_attention.conv1.weight").squeeze(0)
    return out


def _encoder(read: Reader, source: str, target: str) -> dict[str, Tensor]:
    layer = f"{source}.transformer_blocks.0"
    names = {
        "in_proj.weight": "attention.in_proj_weight",
        "in_proj.bias": "attention.in_proj_bias",
        "out_proj.weight": "attention.out_proj.weight",
        "out_proj.bias": "attention.out_proj.bias",
        "norm1.weight": "layernorm1.weight",
        "norm1.bias": "layernorm1.bias",
        "norm2.weight": "layernorm2.weight",
        "norm2.bias": "layernorm2.bias",
        "ff1.weight": "ffn.0.weight",
        "ff1.bias": "ffn.0.bias",
        "ff2.weight": "ffn.2.weight",
        "ff2.bias": "ffn.2.bias",
    }
    return {f"{target}.encoder.{ours}": read(f"{layer}.{theirs}") for ours, theirs in names.items()}


def _tokens(
    read: Reader, source: str, target: str, token_channels: int | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Projections around an encoder; with `token_channels`, tokens there are (channel, step), here (step, channel)."""

    def by_step(weight: Tensor) -> Tensor:
        if token_channels is None:
            return weight
        return weight.unflatten(0, (token_channels, -1)).transpose(0, 1).flatten(0, 1)

    out = {
        f"{target}.project_out.weight": by_step(read(f"{source}.output_layer.weight")),
        f"{target}.project_out.bias": by_step(read(f"{source}.output_layer.bias")),
    }
    if state_dict is None or f"{source}.cls_token" in state_dict:
        out[f"{target}.cls_token"] = read(f"{source}.cls_token").flatten()
    if token_channels is not None:
        out[f"{target}.project_in.weight"] = by_step(read(f"{source}.embedding.weight").t()).t()
        out[f"{target}.project_in.bias"] = read(f"{source}.embedding.bias")
    return {name: torch.clone(value) for name, value in out.items()}
