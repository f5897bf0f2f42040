"""From the parameter names of the published MambAttention (commit 7096765 of the authors' repository) to ours."""

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from seqattn.models.mambattention import MambAttention
    from seqattn.models.metric_discriminator import MetricDiscriminator

UNIT = {"0": "conv", "1": "norm", "2": "act"}
NAMES = (
    # ours, theirs
    (r"encoder\.expand\.", "dense_encoder.dense_conv_1."),
    (r"encoder\.reduce\.", "dense_encoder.dense_conv_2."),
    (r"(encoder)\.dense\.units\.(\d+)\.", r"dense_\1.dense_block.dense_block.\2."),
    (r"(\w+_decoder)\.dense\.units\.(\d+)\.", r"\1.dense_block.dense_block.\2."),
    (r"blocks\.(\d+)\.attentions\.0\.norm\.", r"TFMambAttention.\1.attention.layernorm."),
    (r"blocks\.(\d+)\.attentions\.0\.in_proj\.", r"TFMambAttention.\1.attention.attn.in_proj_"),
    (r"blocks\.(\d+)\.attentions\.0\.out_proj\.", r"TFMambAttention.\1.attention.attn.out_proj."),
    (r"blocks\.(\d+)\.time_mixer\.fusion\.", r"TFMambAttention.\1.tlinear."),
    (r"blocks\.(\d+)\.frequency_mixer\.fusion\.", r"TFMambAttention.\1.flinear."),
    (r"blocks\.(\d+)\.time_mixer\.", r"TFMambAttention.\1.time_mamba."),
    (r"blocks\.(\d+)\.frequency_mixer\.", r"TFMambAttention.\1.freq_mamba."),
    (r"mamba\.mixers\.0\.", "mamba.forward_blocks.0.mixer."),
    (r"mamba\.mixers\.1\.", "mamba.backward_blocks.0.mixer."),
    (r"mamba\.norms\.0$", "mamba.forward_blocks.0.norm.weight"),
    (r"mamba\.norms\.1$", "mamba.backward_blocks.0.norm.weight"),
    (r"mask_decoder\.up\.", "mask_decoder.mask_conv.0."),
    (r"mask_decoder\.squeeze\.", "mask_decoder.mask_conv.1."),
    (r"mask_decoder\.norm\.", "mask_decoder.mask_conv.2."),
    (r"mask_decoder\.act\.", "mask_decoder.mask_conv.3."),
    (r"mask_decoder\.point\.", "mask_decoder.mask_conv.4."),
    (r"mask_decoder\.slope$", "mask_decoder.lsigmoid.slope"),
    (r"phase_decoder\.up\.", "phase_decoder.phase_conv."),
    (r"phase_decoder\.real\.", "phase_decoder.phase_conv_r."),
    (r"phase_decoder\.imaginary\.", "phase_decoder.phase_conv_i."),
    (r"\.conv\.", ".0."),
    (r"(dense_block\.\d+|dense_conv_\d|phase_conv)\.norm\.", r"\1.1."),
    (r"\.act\.", ".2."),
)


def official_name(name: str) -> str:
    """The published name of our parameter."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def convert_state_dict(state_dict: dict[str, Tensor], model: "MambAttention") -> dict[str, Tensor]:
    """Return `state_dict` under the names and shapes of `model`.

    Raises:
        ValueError: an entry is missing, unknown or has another shape.
    """
    out = {}
    unused = set(state_dict)
    for name, value in model.state_dict().items():
        theirs = official_name(name)
        given = official_entry(state_dict, theirs)
        unused.discard(theirs)
        if name.endswith("fusion.weight"):  # theirs belongs to a transposed convolution: (in, out, 1)
            given = given.squeeze(-1).t()
        elif name.endswith("slope"):
            given = given.flatten()
        if given.shape != value.shape:
            shapes = f"{theirs} is {tuple(given.shape)} in the state dict and {tuple(value.shape)} in the network"
            raise ValueError(f"MambAttention.from_official: {shapes}")
        out[name] = given.detach().contiguous()
    if unused:
        raise ValueError(f"MambAttention.from_official: the state dict has an unknown entry {min(unused)!r}")
    return out


def sizes_of(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of `MambAttention` under which it has the shapes of a published state dict."""
    mixer = "TFMambAttention.0.time_mamba.forward_blocks.0.mixer"
    channels, (inner, d_state) = (
        official_entry(state_dict, "dense_encoder.dense_conv_1.0.weight").shape[0],
        official_entry(state_dict, f"{mixer}.A_log").shape,
    )
    return {
        "channels": channels,
        "blocks": 1 + max(int(name.split(".")[1]) for name in state_dict if name.startswith("TFMambAttention.")),
        "n_fft": 2 * (official_entry(state_dict, "mask_decoder.lsigmoid.slope").shape[0] - 1),
        "d_state": d_state,
        "d_conv": official_entry(state_dict, f"{mixer}.conv1d.weight").shape[2],
        "expand": inner // channels,
    }


def convert_discriminator(state_dict: dict[str, Tensor], model: "MetricDiscriminator") -> dict[str, Tensor]:
    """Return the published discriminator's entries under the names of `model`; power-iteration vectors included.

    Raises:
        ValueError: an entry is missing or has another shape.
    """
    out = {}
    for name, value in model.state_dict().items():
        theirs = re.sub(r"parametrizations\.weight\.original$", "weight_orig", name)
        theirs = re.sub(r"parametrizations\.weight\.0\._(u|v)$", r"weight_\1", theirs)
        theirs = theirs.replace("slope", "layers.18.slope") if name == "slope" else theirs
        given = official_entry(state_dict, theirs, "MetricDiscriminator").detach()
        if given.numel() != value.numel():
            raise ValueError(
                f"MetricDiscriminator.from_official: {theirs} is {tuple(given.shape)} in the state dict and "
                f"{tuple(value.shape)} in the network"
            )
        out[name] = given.reshape(value.shape)  # the published slope has a shape of its own
    return out


def official_entry(state_dict: dict[str, Tensor], name: str, network: str = "MambAttention") -> Tensor:
    """An entry of a published state dict; ValueError where it is missing."""
    if name not in state_dict:
        raise ValueError(f"{network}.from_official: the state dict has no entry {name!r}; is it a {network}'s?")
    return state_dict[name]
