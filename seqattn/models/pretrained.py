"""Weights that come with the package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from seqattn.errors import SeqattnError, nearest
from seqattn.models.mambattention import MambAttention

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
DEFAULT = "mambattention-small"


def pretrained_names() -> list[str]:
    """Names that `load_pretrained` takes."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_pretrained(name: str = DEFAULT) -> MambAttention:
    """A trained speech enhancer, in evaluation mode; its card is beside its weights, as NAME.md.

    Raises:
        SeqattnError: no weights have that name, or their file is damaged.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        names = pretrained_names()
        known = f"; choose one of {', '.join(names)}" if names else ": this installation has none, install it again"
        raise SeqattnError(f"no weights are named {name!r}{nearest(name, names) or known}")
    try:
        with safe_open(path, framework="pt") as file:
            options = json.loads(file.metadata()["options"])
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118, it is no mapping
        model = MambAttention(**options)
        model.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SeqattnError(f"{path} is damaged ({type(error).__name__}): install the package again") from error
    return model.eval()


def pack_weights(model: MambAttention, options: Mapping[str, Any]) -> bytes:
    """The file that `load_pretrained` reads: weights in float16, and the constructor options of `model`."""
    weights = {name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    return save(weights, metadata={"options": json.dumps(dict(options))})
