"""The network that `seqattn enhance` and `seqattn eval speech` use."""

from pathlib import Path

import torch
from torch import Tensor

from seqattn.errors import SeqattnError
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.speech import load_module
from seqattn.experiment.streaming import Enhancer
from seqattn.models.mambattention import MambAttention
from seqattn.models.pretrained import load_pretrained


def load_enhancer(path: Path | None = None, device: str | None = None) -> Enhancer:
    """The network of the run in `path`, or the one whose weights are shipped, as what `streaming` calls.

    device: "cpu" or "cuda", default cuda where there is one.

    Raises:
        SeqattnError: not a run of speech enhancement, or no such device.
    """
    network, place = load_network(None if path is None else RunDirectory.open(path), device)

    def enhance(waveform: Tensor, gain: Tensor) -> Tensor:
        return network.enhance(waveform.to(place), gain=gain.to(place)).cpu()

    return enhance


def load_network(run: RunDirectory | None, device: str | None = None) -> tuple[MambAttention, torch.device]:
    """The network of a run, or the shipped one, in evaluation mode on a device: see `load_enhancer`."""
    place = chosen_device(device)
    network = load_pretrained() if run is None else load_module(run).network
    return network.to(place).eval(), place


def chosen_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises:
        SeqattnError: this machine has no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # AssertionError: torch without CUDA
        raise SeqattnError(f"there is no device {name!r} on this machine: leave --device out, or give cpu") from None
    return device
