"""Pictures of what a model saw of each stay: the observations, where time attention looked, and how much it counted."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqattn.data.clinical.datasets import Batch, ClinicalDataset
from seqattn.errors import SeqattnError, nearest
from seqattn.experiment.run_directory import disk_sentence
from seqattn.experiment.stay_picture import StayPicture, draw_stay
from seqattn.layers.time_embedding import query_times
from seqattn.models.interleaved_ehr import InterleavedEHR
from seqattn.tasks.clinical import ClinicalPrediction

MOST = 50  # pictures, where neither ids nor a number are given


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


def chosen_stays(stays: ClinicalDataset, ids: Sequence[str] | None, limit: int | None) -> list[int]:
    """Positions of the stays that are drawn: those named, in their order, or the first `limit`, default MOST.

    Raises:
        SeqattnError: an id is no stay's.
    """
    if ids is None:
        return list(range(min(MOST if limit is None else limit, len(stays))))
    place = {str(stays.stays.ids[index]): position for position, index in enumerate(stays.indices)}
    absent = [identity for identity in ids if identity not in place]
    if absent:
        advice = nearest(absent[0], place) or f"; the first of {len(place)} is {next(iter(place))}"
        raise SeqattnError(f"--explain-ids: there is no stay {absent[0]!r}{advice}")
    return [place[identity] for identity in dict.fromkeys(ids)]


@torch.inference_mode()
def explain_stays(
    module: ClinicalPrediction, stays: ClinicalDataset, positions: Sequence[int], risk: Tensor, folder: Path
) -> None:
    """One PNG for each of the stays at `positions`, NUMBER-ID.png with the stay's row in the table of predictions.

    risk: (stays, labels), for the titles. Earlier pictures of stays in `folder` are deleted first.
    """
    network = explainable_network(module, folder)
    _delete_pictures(folder)
    for position in positions:
        batch = {name: value.to(module.device) for name, value in stays.__getitems__([position]).items()}
        identity = str(stays.stays.ids[stays.indices[position]])
        title = f"stay {identity}: {_risks(module.labels, risk[position].tolist())}"
        name = re.sub(r"[^\w.-]+", "_", identity)[:80]
        draw_stay(picture_of(network, batch, stays, title), folder / f"{position + 1:04d}-{name}.png")


def _delete_pictures(folder: Path) -> None:
    for picture in folder.glob("*.png"):
        if re.match(r"\d{4,}-", picture.name):
            try:
                picture.unlink()
            except OSError as error:
                raise SeqattnError(disk_sentence(picture, error)) from error


def picture_of(network: InterleavedEHR, batch: Batch, stays: ClinicalDataset, title: str) -> StayPicture:
    """What is drawn of a batch of one stay; `stays` has its variables and window."""
    window = stays.stays.window
    series = {name: batch[name] for name in ("values", "mask", "times", "regular", "lengths")}
    attention = network.attention(batch["mask"], batch["times"], batch["lengths"])[0].mean(0)
    gate = network.mixture(**series).gate
    rows, channels = (index.cpu().numpy() for index in batch["mask"][0].nonzero(as_tuple=True))
    hours = window * batch["times"][0].cpu().numpy()
    notes, note_attention = _notes(network, batch)
    return StayPicture(
        title=title, window=window, variables=[variable.name for variable in stays.stays.variables],
        hours=hours[rows], channels=channels, values=batch["values"][0][batch["mask"][0]].cpu().numpy(),
        row_hours=hours, attention=attention.cpu().numpy(), notes=window * notes, note_attention=note_attention,
        gate=None if gate is None else gate[0].expand(network.num_steps, -1).cpu().numpy(),
    )  # fmt: skip


def _notes(network: InterleavedEHR, batch: Batch) -> tuple[NDArray[np.floating], NDArray[np.floating] | None]:
    """(notes,) times of a stay's notes, and (steps, notes) how much each step looks at them, mean of the heads.

    None for a model that reads no notes.
    """
    if "note_times" not in batch or network.notes is None or network.time_embedding is None:
        return np.empty(0), None
    times, mask = batch["note_times"], batch["note_mask"]
    query = network.time_embedding(query_times(network.num_steps, network.head.out.weight))
    weights = network.notes.note_weights(query, network.time_embedding(times), mask)[0].mean(0)
    return times[0][mask[0]].cpu().numpy(), weights[:, mask[0]].cpu().numpy()


def _risks(labels: list[str], risk: list[float]) -> str:
    """The risk of each label, of more than three labels the highest three."""
    ranked = sorted(zip(labels, risk, strict=True), key=lambda entry: -entry[1])
    return ", ".join(f"{label} {100 * value:.1f} %" for label, value in ranked[:3])
