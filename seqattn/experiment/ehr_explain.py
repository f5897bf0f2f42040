"""Pictures of what a model saw of each stay: the observations, where time attention looked, and how much it counted."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqattn.data.clinical.datasets import Batch, ClinicalDataset
from seqattn.errors import SeqattnError
from seqattn.experiment.stay_picture import StayPicture, draw_stay
from seqattn.models.interleaved_ehr import InterleavedEHR
from seqattn.tasks.clinical import ClinicalPrediction

MOST = 50  # pictures


def explainable_network(module: ClinicalPrediction, folder: Path) -> InterleavedEHR:
    """The network, if it has time attention over series and pictures can go into `folder`; SeqattnError otherwise."""
    network = module.network
    if not isinstance(network, InterleavedEHR):
        raise SeqattnError(f"--explain needs a run of the model interleaved, this one is {module.hparams['model']}")
    if network.series is None or network.series.attention is None:
        raise SeqattnError("--explain draws time attention over series, and the model of this run has none")
    if folder.exists() and not folder.is_dir():
        raise SeqattnError(f"{folder} is a file, the pictures go into a folder of that name: choose another -o")
    return network


@torch.inference_mode()
def explain_stays(module: ClinicalPrediction, stays: ClinicalDataset, risk: Tensor, folder: Path) -> int:
    """One PNG for each of the first MOST stays, NUMBER-ID.png; returns how many.

    risk: (stays, labels), for the titles.
    """
    network = explainable_network(module, folder)
    drawn = min(MOST, len(stays))
    for position in range(drawn):
        batch = {name: value.to(module.device) for name, value in stays.__getitems__([position]).items()}
        identity = str(stays.stays.ids[stays.indices[position]])
        title = f"stay {identity}: {_risks(module.labels, risk[position].tolist())}"
        name = re.sub(r"[^\w.-]+", "_", identity)[:80]
        draw_stay(picture_of(network, batch, stays, title), folder / f"{position + 1:04d}-{name}.png")
    return drawn


def picture_of(network: InterleavedEHR, batch: Batch, stays: ClinicalDataset, title: str) -> StayPicture:
    """What is drawn of a batch of one stay; `stays` has its variables and window."""
    window = stays.stays.window
    series = {name: batch[name] for name in ("values", "mask", "times", "regular", "lengths")}
    attention = network.attention(batch["mask"], batch["times"], batch["lengths"])[0].mean(0)
    gate = network.mixture(**series).gate
    rows, channels = (index.cpu().numpy() for index in batch["mask"][0].nonzero(as_tuple=True))
    hours = window * batch["times"][0].cpu().numpy()
    notes = np.empty(0)
    if "note_times" in batch:
        notes = window * batch["note_times"][0][batch["note_mask"][0]].cpu().numpy()
    return StayPicture(
        title=title, window=window, variables=[variable.name for variable in stays.stays.variables],
        hours=hours[rows], channels=channels, values=batch["values"][0][batch["mask"][0]].cpu().numpy(),
        row_hours=hours, attention=attention.cpu().numpy(), notes=notes,
        gate=None if gate is None else gate[0].expand(network.num_steps, -1).cpu().numpy(),
    )  # fmt: skip


def _risks(labels: list[str], risk: list[float]) -> str:
    """The risk of each label, of more than three labels the highest three."""
    ranked = sorted(zip(labels, risk, strict=True), key=lambda entry: -entry[1])
    return ", ".join(f"{label} {100 * value:.1f} %" for label, value in ranked[:3])
