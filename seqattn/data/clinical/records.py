"""Stays in memory: irregular events, notes, static values and labels, in a few arrays for all stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from seqattn.data.clinical.schema import Variable
from seqattn.errors import SeqattnError

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Notes:
    """The notes of all stays: those of stay i are starts[i] to starts[i + 1], ascending in time.

    starts: (stays + 1,). times: (notes,) hours from the window's start. texts: (notes,) str, or () where only vectors
    are there. vectors: (notes, width) float32, None until they are encoded.
    """

    starts: Indices
    times: Floats
    texts: tuple[str, ...] = ()
    vectors: Floats | None = None

    def select(self, chosen: Indices, starts: Indices) -> "Notes":
        """The notes at `chosen`, which `starts` deals out to the stays."""
        texts = tuple(self.texts[note] for note in chosen.tolist()) if self.texts else ()
        return Notes(starts, self.times[chosen], texts, None if self.vectors is None else self.vectors[chosen])


@dataclass(frozen=True, eq=False)
class Stay:
    """One stay, dense: times (rows,) hours, values and mask (rows, variables), values 0 where mask is False."""

    id: str
    subject: str
    times: Floats
    values: Floats
    mask: NDArray[np.bool_]
    static: Floats
    labels: Floats
    note_times: Floats
    note_texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Stays:
    """All stays of a source; the events of stay i are starts[i] to starts[i + 1], ascending in time, then variable.

    ids, subjects, splits: (stays,) text; splits are "train", "valid", "test", or "" where the source does not say.
    starts: (stays + 1,) int64. times: (events,) hours from the window's start, 0 to window. channel: (events,) int32,
    the position in `variables`. values: (events,) finite, in the variable's unit.
    labels: (stays, label names), NaN where unknown. static: (stays, static variables), NaN where unknown.
    counts: what the reader left out or changed, phrase -> how many.
    """

    ids: NDArray[np.str_]
    subjects: NDArray[np.str_]
    splits: NDArray[np.str_]
    variables: tuple[Variable, ...]
    window: float
    starts: Indices
    times: Floats
    channel: NDArray[np.int32]
    values: Floats
    label_names: tuple[str, ...] = ()
    labels: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    static_variables: tuple[Variable, ...] = ()
    static: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    notes: Notes | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("labels", "static"):  # no columns: (stays, 0)
            if not getattr(self, name).size:
                object.__setattr__(self, name, np.empty((len(self.ids), 0), np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> NDArray[np.int32]:
        """(events,) the row of each event in its stay: events of one time share a row."""
        if not len(self.times):
            return np.empty(0, np.int32)
        new = np.ones(len(self.times), dtype=bool)
        new[1:] = self.times[1:] != self.times[:-1]
        new[self.starts[:-1][np.diff(self.starts) > 0]] = True
        number = np.cumsum(new)
        first = number[np.minimum(self.starts[:-1], len(number) - 1)]
        return (number - np.repeat(first, np.diff(self.starts))).astype(np.int32)

    @property
    def lengths(self) -> Indices:
        """(stays,) rows of each stay, 0 for a stay without events."""
        counts = np.diff(self.starts)
        lengths = np.zeros(len(self), dtype=np.int64)
        lengths[counts > 0] = self.rows[self.starts[1:][counts > 0] - 1] + 1
        return lengths

    def stay(self, index: int) -> Stay:
        """Stay `index` as dense arrays."""
        events = slice(int(self.starts[index]), int(self.starts[index + 1]))
        times, row = np.unique(self.times[events], return_inverse=True)
        values = np.zeros((len(times), len(self.variables)), np.float32)
        mask = np.zeros(values.shape, bool)
        values[row, self.channel[events]] = self.values[events]
        mask[row, self.channel[events]] = True
        note_times: Floats = np.empty(0, np.float32)
        texts: tuple[str, ...] = ()
        if self.notes is not None:
            part = slice(int(self.notes.starts[index]), int(self.notes.starts[index + 1]))
            note_times, texts = self.notes.times[part], self.notes.texts[part]
        names = str(self.ids[index]), str(self.subjects[index])
        return Stay(*names, times, values, mask, self.static[index], self.labels[index], note_times, texts)

    def subset(self, indices: Sequence[int] | Indices) -> "Stays":
        """The stays at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        events, starts = gather(self.starts, chosen)
        notes = None if self.notes is None else self.notes.select(*gather(self.notes.starts, chosen))
        return replace(
            self, ids=self.ids[chosen], subjects=self.subjects[chosen], splits=self.splits[chosen], starts=starts,
            times=self.times[events], channel=self.channel[events], values=self.values[events],
            labels=self.labels[chosen], static=self.static[chosen], notes=notes,
        )  # fmt: skip

    def counted(self, phrase: str, count: int) -> "Stays":
        """The same stays, with `count` more of `phrase` on the list of what was changed."""
        if not count:
            return self
        return replace(self, counts={**self.counts, phrase: self.counts.get(phrase, 0) + int(count)})


def gather(starts: Indices, chosen: Indices) -> tuple[Indices, Indices]:
    """Positions of the items of the chosen stays, one stay after the other, and the starts among them."""
    sizes = (starts[1:] - starts[:-1])[chosen]
    inside = np.concatenate([[0], np.cumsum(sizes)])
    return np.arange(inside[-1]) + np.repeat(starts[chosen] - inside[:-1], sizes), inside


def starts_of(stay: NDArray[np.integer], stays: int) -> Indices:
    """(stays + 1,) where each stay begins among items that are sorted by stay."""
    return np.concatenate([[0], np.cumsum(np.bincount(stay, minlength=stays))]).astype(np.int64)


def describe(counts: Mapping[str, int]) -> list[str]:
    """One line for each thing that was left out or changed, such as "12 stays without series left out"."""
    return [f"{count:,} {phrase}" for phrase, count in counts.items() if count]


def static_as_events(stays: Stays) -> Stays:
    """The static values as events at hour 0 of variables of their own, after the others.

    Raises SeqattnError where a static variable has the name of another variable.
    """
    names = {variable.name for variable in stays.variables}
    both = [variable.name for variable in stays.static_variables if variable.name in names]
    if both:
        raise SeqattnError(f"{both[0]!r} is both a static value and a variable of the events; rename one of them")
    known = np.isfinite(stays.static)
    stay, column = np.nonzero(known)
    owner = np.repeat(np.arange(len(stays)), np.diff(stays.starts))
    all_owner = np.concatenate([owner, stay])
    times = np.concatenate([stays.times, np.zeros(len(stay), np.float32)])
    channel = np.concatenate([stays.channel, (len(stays.variables) + column).astype(np.int32)])
    values = np.concatenate([stays.values, stays.static[known]])
    order = np.lexsort((channel, times, all_owner))
    return replace(
        stays, variables=stays.variables + stays.static_variables, starts=starts_of(all_owner, len(stays)),
        times=times[order], channel=channel[order], values=values[order], static_variables=(),
        static=np.empty((0, 0), np.float32),
    )  # fmt: skip


def latest_rows(stays: Stays, most: int) -> Stays:
    """Stays of at most `most` rows: the earlier rows of longer ones are left out and counted, no stay is."""
    lengths, rows = stays.lengths, stays.rows
    first = np.maximum(lengths - most, 0)
    owner = np.repeat(np.arange(len(stays)), np.diff(stays.starts))
    kept = rows >= first[owner]
    if kept.all():
        return stays
    shorter = replace(
        stays, starts=starts_of(owner[kept], len(stays)), times=stays.times[kept], channel=stays.channel[kept],
        values=stays.values[kept],
    )  # fmt: skip
    shorter = shorter.counted(f"stays cut to their latest {most} times", int((first > 0).sum()))
    return shorter.counted(f"events before the latest {most} times left out", int((~kept).sum()))


def latest_notes(stays: Stays, most: int) -> Stays:
    """Stays of at most `most` notes each, the latest; those left out are counted."""
    if stays.notes is None:
        return stays
    sizes = np.diff(stays.notes.starts)
    place = np.arange(len(stays.notes.times)) - np.repeat(stays.notes.starts[:-1], sizes)
    kept = place >= np.repeat(np.maximum(sizes - most, 0), sizes)
    starts = np.concatenate([[0], np.cumsum(np.minimum(sizes, most))]).astype(np.int64)
    shorter = replace(stays, notes=stays.notes.select(np.flatnonzero(kept), starts))
    return shorter.counted(f"notes before the latest {most} of their stay left out", int((~kept).sum()))


def check_subjects(stays: Stays, parts: Mapping[str, Indices]) -> None:
    """Raise SeqattnError where a subject has stays in two of the parts."""
    seen: dict[str, str] = {}
    for part, indices in parts.items():
        for subject in np.unique(stays.subjects[indices]).tolist():
            if subject in seen:
                problem = f"subject {subject} has stays in {seen[subject]} and in {part}"
                raise SeqattnError(f"{problem}; put all stays of a subject into one split")
            seen[subject] = part
