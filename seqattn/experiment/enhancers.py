"""The network that `seqattn enhance` uses."""

from pathlib import Path

import torch
from torch import Tensor

from seqattn.errors import SeqattnError
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.speech import load_module
from seqattn.experiment.streaming import Enhancer


def load_enhancer(run: Path | None = None, device: str | None = None) -> Enhancer:
    """The network of a run.

    device: "cpu" or "cuda", default cuda where there is one.

    Raises:
        SeqattnError: not a run of speech enhancement, or no such device.
    """
    if run is None:
        raise SeqattnError("name a run directory with --run: no weights are shipped")
    place = chosen_device(device)
    network = load_module(RunDirectory.open(run)).network.to(place)

    def enhance(waveform: Tensor, gain: Tensor) -> Tensor:
        return network.enhance(waveform.to(place), gain=gain.to(place)).cpu()

    return enhance


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
