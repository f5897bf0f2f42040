"""From the parameter names of the published MultimodalMIMIC (commit 8e513ca of the authors' repository) to ours."""

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqattn.errors import SeqattnError

if TYPE_CHECKING:
    from seqattn.models.interleaved_ehr import InterleavedEHR

TIME_HEADS = 8  # in every published network
SELF_CROSS = "trans_self_cross_ts_txt"
NAMES = (
    # ours, theirs
    (r"^time_embedding\.", ""),
    (r"^series\.attention\.", "time_attn_ts."),
    (r"^notes\.", "time_attn."),
    (r"^(time_attn(?:_ts)?)\.query\.", r"\1.linears.0."),
    (r"^(time_attn(?:_ts)?)\.key\.", r"\1.linears.1."),
    (r"^(time_attn(?:_ts)?)\.out\.", r"\1.linears.2."),
    (r"^series\.imputation\.conv\.", "proj_ts."),
    (r"^series\.gate\.hidden\.", "moe.gate.1."),
    (r"^series\.gate\.out\.", "moe.gate.3."),
    (r"^head\.hidden\.", "proj1."),
    (r"^head\.back\.", "proj2."),
    (r"^head\.out\.", "out_layer."),
    (r"^trunk\.position\.table$", f"{SELF_CROSS}.embed_positions_q_1.weight"),
    (r"^trunk\.(layers|norms)\.", rf"{SELF_CROSS}.\1."),
    (r"\.self_norms\.", ".pre_self_attn_layer_norm."),
    (r"\.self_attentions\.", ".self_attns."),
    (r"\.cross_norms\.", ".pre_encoder_attn_layer_norm."),
    (r"\.cross_attentions\.0\.", ".cross_attn_1."),
    (r"\.cross_attentions\.1\.", ".cross_attn_2."),
    (r"\.ff_norms\.", ".pre_ffn_layer_norm."),
    (r"\.feed_forwards\.(\d)\.ff(\d)\.", r".fc\2.\1."),
    (r"\.norms\.(\d)\.", r".layer_norm.\1."),
    (r"^trunk\.notes_from_series\.", "trans_txt_with_ts."),
    (r"^trunk\.series_from_notes\.", "trans_ts_with_txt."),
    (r"^trunk\.notes_memory\.", "trans_ts_mem."),  # as the published network names them: by what was attended to
    (r"^trunk\.series_memory\.", "trans_txt_mem."),
    (r"^trunk\.notes\.stack\.", "trans_txt_mem."),
    (r"^trunk\.(series\.)?stack\.", "trans_ts_mem."),
    (r"\.memory_position\.table$", ".embed_positions_kv.weight"),
    (r"\.position\.table$", ".embed_positions_q.weight"),
    (r"(layers\.\d+)\.norm\.", r"\1.layer_norms.0."),
    (r"(layers\.\d+)\.ff_norm\.", r"\1.layer_norms.1."),
    (r"(layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"\.feed_forward\.ff(\d)\.", r".fc\1."),
    (r"^(trans_\w+)\.norm\.", r"\1.layer_norm."),
    (r"\.in_proj\.", ".in_proj_"),
)
UNUSED = re.compile(r"\.post_\w+_layer_norm\.|\.embed_positions|\.version$|\._float_tensor$")


def official_name(name: str) -> str:
    """The published name of our parameter; of LSTM and CNN encoders, what follows the published prefix."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def official_options(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """Constructor options of `InterleavedEHR` that every published network has, or that its state dict tells."""
    options: dict[str, Any] = {"time_heads": TIME_HEADS, "lstm_state": "backward"}
    if "time_attn.linears.2.weight" in state_dict:
        options["note_width"] = state_dict["time_attn.linears.2.weight"].shape[1] // TIME_HEADS
    return options


def convert_state_dict(state_dict: dict[str, Tensor], model: "InterleavedEHR") -> dict[str, Tensor]:
    """Return `state_dict` under the names of `model`.

    Raises:
        SeqattnError: an entry is missing, has another shape, or is left over from a part that the model has.
    """
    out, used = {}, set()
    encoder = _encoder_names(state_dict, model)
    for name, value in model.state_dict().items():
        theirs = encoder.get(name) or _as_spelled(official_name(name), state_dict)
        if theirs == "proj_ts.weight" and theirs not in state_dict and value.shape[0] == value.shape[1]:
            out[name] = torch.eye(len(value)).reshape(value.shape)  # where the widths agree they have no projection
            continue
        if theirs not in state_dict:
            raise SeqattnError(
                f"InterleavedEHR.from_official: the state dict has no entry {theirs!r}; check fusion, encoder and "
                "the numbers of layers"
            )
        given = state_dict[theirs].detach()
        used.add(theirs)
        if given.shape != value.shape:
            shapes = f"{theirs} is {tuple(given.shape)} in the state dict and {tuple(value.shape)} in the network"
            raise SeqattnError(f"InterleavedEHR.from_official: {shapes}; check the sizes")
        out[name] = given.clone()
    parts = {name.split(".")[0] for name in used}
    left = [name for name in state_dict if name.split(".")[0] in parts and name not in used and not UNUSED.search(name)]
    if left:
        raise SeqattnError(f"InterleavedEHR.from_official: {min(left)!r} has no place in this network; check layers")
    return out


def _as_spelled(name: str, state_dict: dict[str, Tensor]) -> str:
    """The name itself, unless it is of the table of a stack's other sequence, whose spelling varies."""
    stack, _, rest = name.partition(".")
    tables = [key for key in state_dict if key.startswith(f"{stack}.embed_positions") and "kv" in key]
    return tables[0] if rest == "embed_positions_kv.weight" and tables else name


def _encoder_names(state_dict: dict[str, Tensor], model: "InterleavedEHR") -> dict[str, str]:
    """Published names of an LSTM's or a CNN's parameters, found by what they are: their prefixes vary."""
    ours = [name for name in model.state_dict() if re.match(r"trunk\.(series\.)?(lstm|convs|out)\.", name)]
    if not ours:
        return {}
    known = {official_name(name).split(".")[0] for name in model.state_dict() if name not in ours}
    free = [name for name in state_dict if name.split(".")[0] not in known]
    if ".lstm." in ours[0]:
        return {name: theirs for name in ours for theirs in free if theirs.endswith("." + name.split(".")[-1])}
    weights = [name for name in free if name.endswith(".weight")]
    convs = [name for name in weights if state_dict[name].ndim == 3]
    linear = [name for name in weights if state_dict[name].shape == model.state_dict()[ours[-2]].shape]
    theirs = [weight[: -len("weight")] + kind for weight in convs + linear for kind in ("weight", "bias")]
    return dict(zip(ours, theirs, strict=False))
