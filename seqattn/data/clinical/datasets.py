"""Stays as padded batches of tensors, in the form that InterleavedEHR takes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqattn.data.clinical.grid import regular_series
from seqattn.data.clinical.records import Indices, Stays, gather
from seqattn.errors import SeqattnError

Batch = dict[str, Tensor]


class ClinicalDataset(Dataset[Batch]):
    """Stays with normalised values as tensors, fetched a whole batch at a time, padded to its longest stay.

    A batch is a dict:
        values (batch, length, channels) float32, 0 where nothing was observed, and mask, the same shape, bool;
        times (batch, length) float32, parts of the window from 0 to 1, ascending, 0 past the end;
        regular (batch, steps, 2 * channels) float32, see `regular_series`;
        lengths (batch,) int64, the rows of each stay, at least 1: a stay without events has one row of mask False;
        label (batch,) int64, -1 where unknown, with up to one label; else (batch, labels) float32, NaN where unknown;
        index (batch,) int64, the stay's position in `stays`;
        and where the stays have note vectors: note_vectors (batch, notes, width) float32, note_times and note_mask
        (batch, notes), times as parts of the window (negative before it), notes padded at the end, at least one.

    indices: the stays to offer, default all. steps, fill: of the regular series.
    """

    def __init__(self, stays: Stays, *, steps: int, indices: Indices | None = None, fill: str = "forward") -> None:
        if stays.notes is not None and stays.notes.vectors is None:
            raise SeqattnError("the notes have no vectors; encode them before making batches")
        self.stays, self.steps, self.fill = stays, steps, fill
        self.indices = np.arange(len(stays)) if indices is None else indices
        self.rows = stays.rows
        self.lengths = np.maximum(stays.lengths, 1)
        self.parts = np.clip(stays.times / np.float32(stays.window), 0, 1).astype(np.float32)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([position]).items()}

    def __getitems__(self, positions: list[int]) -> Batch:
        chosen = self.indices[positions]
        arrays = {**self._series(chosen), "label": self._labels(chosen), "index": chosen, **self._notes(chosen)}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def _series(self, chosen: Indices) -> dict[str, Any]:
        events, starts = gather(self.stays.starts, chosen)
        stay, row = np.repeat(np.arange(len(chosen)), np.diff(starts)), self.rows[events]
        channel, given, parts = self.stays.channel[events], self.stays.values[events], self.parts[events]
        lengths, channels = self.lengths[chosen], len(self.stays.variables)
        values = np.zeros((len(chosen), int(lengths.max()), channels), np.float32)
        mask = np.zeros(values.shape, dtype=bool)
        times = np.zeros(values.shape[:2], np.float32)
        values[stay, row, channel] = given
        mask[stay, row, channel] = True
        times[stay, row] = parts
        shape = (len(chosen), self.steps, channels)
        regular = regular_series(stay, row, parts, channel, given, shape=shape, fill=self.fill)
        return {"values": values, "mask": mask, "times": times, "regular": regular, "lengths": lengths}

    def _labels(self, chosen: Indices) -> Any:
        labels = self.stays.labels[chosen]
        if labels.shape[1] > 1:
            return labels
        first = labels[:, 0] if labels.shape[1] else np.full(len(chosen), np.nan)
        return np.where(np.isnan(first), -1, first).astype(np.int64)

    def _notes(self, chosen: Indices) -> dict[str, Any]:
        notes = self.stays.notes
        if notes is None or notes.vectors is None:
            return {}
        positions, starts = gather(notes.starts, chosen)
        sizes = np.diff(starts)
        stay = np.repeat(np.arange(len(chosen)), sizes)
        place = np.arange(len(positions)) - np.repeat(starts[:-1], sizes)
        shape = (len(chosen), max(1, int(sizes.max())))
        vectors = np.zeros((*shape, notes.vectors.shape[1]), np.float32)
        times, mask = np.zeros(shape, np.float32), np.zeros(shape, dtype=bool)
        vectors[stay, place] = notes.vectors[positions]
        times[stay, place] = notes.times[positions] / np.float32(self.stays.window)
        mask[stay, place] = True
        return {"note_vectors": vectors, "note_times": times, "note_mask": mask}
