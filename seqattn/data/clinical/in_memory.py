"""Stays from arrays that a program holds already."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqattn.data.clinical.events import add, sort_events
from seqattn.data.clinical.records import Notes, Stays, starts_of
from seqattn.data.clinical.schema import Variable
from seqattn.errors import SeqattnError, nearest

_KEYS = ("id", "subject", "split", "times", "values", "mask", "note_times", "notes", "label")


def from_pypots(
    data: Mapping[str, Any],
    *,
    window: float | None = None,
    times: ArrayLike | None = None,
    variables: Sequence[str] | None = None,
    label: str = "label",
) -> Stays:
    """The stays of PyPOTS' dictionary: X (stays, steps, variables) with NaN where missing, and y (stays,) of 0 and 1.

    times: (steps,) or (stays, steps) hours from the window's start, default 0, 1, ...; window: hours, default just more
    than the latest time. variables: names, default x0, x1, ... Ids are positions; y may be left out.
    """
    if "X" not in data:
        raise SeqattnError(f"the data have no key 'X'{nearest('X', map(str, data)) or '; add it'}")
    values = np.asarray(data["X"], dtype=np.float64)
    if values.ndim != 3:
        raise SeqattnError(f"X has the shape {values.shape}; it must be (stays, steps, variables)")
    stays, steps, width = values.shape
    names = list(variables) if variables is not None else [f"x{number}" for number in range(width)]
    if len(names) != width:
        raise SeqattnError(f"there are {len(names)} names for {width} variables; give one for each")
    hours = np.broadcast_to(np.arange(steps) if times is None else np.asarray(times, np.float64), (stays, steps))
    labels = np.full((stays, 1), np.nan) if data.get("y") is None else np.asarray(data["y"], np.float64).reshape(-1, 1)
    if len(labels) != stays:
        raise SeqattnError(f"y has {len(labels)} labels for {stays} stays; it needs one for each")
    samples = [
        {"id": str(number), "times": hours[number], "values": values[number], "label": {label: labels[number, 0]}}
        for number in range(stays)
    ]
    return from_samples(samples, names, window=float(hours.max()) + 1 if window is None else window)


def from_samples(
    samples: Sequence[Mapping[str, Any]], variables: Sequence[str], *, window: float, duplicates: str = "last"
) -> Stays:
    """Stays of dictionaries, one each, with the keys:

    id; times (rows,) hours from the window's start; values (rows, variables), NaN where missing; and optionally
    mask (rows, variables), False where missing; subject; split; label, a mapping of names to 0 and 1;
    note_times (notes,) hours and notes, as many texts or vectors.

    Rows outside the window are left out and counted; so are notes after it.
    Raises SeqattnError for unknown keys, shapes that do not fit, and ids that are there twice.
    """
    ids = [str(_get(sample, "id", number)) for number, sample in enumerate(samples)]
    if not ids:
        raise SeqattnError("there are no samples; give at least one")
    if len(set(ids)) < len(ids):
        raise SeqattnError("two samples have the same id; give each its own")
    columns = [_rows(sample, number, ids[number], len(variables)) for number, sample in enumerate(samples)]
    stay, hours, channel, values = (np.concatenate(column) for column in zip(*columns, strict=True))
    counts: dict[str, int] = {}
    events = sort_events(
        stay, hours, channel, values, ids=ids, names=variables, window=window, duplicates=duplicates, counts=counts
    )
    names = tuple(dict.fromkeys(str(name) for sample in samples for name in sample.get("label") or {}))
    labels = [[float((sample.get("label") or {}).get(name, np.nan)) for name in names] for sample in samples]
    return Stays(
        np.array(ids), np.array([str(sample.get("subject", name)) for sample, name in zip(samples, ids, strict=True)]),
        np.array([str(sample.get("split", "")) for sample in samples]), tuple(Variable(name) for name in variables),
        window, *events, label_names=names, labels=np.array(labels, np.float32).reshape(len(ids), -1),
        notes=_notes(samples, ids, window, counts), counts=counts,
    )  # fmt: skip


def _get(sample: Mapping[str, Any], key: str, number: int) -> Any:
    strange = [str(name) for name in sample if name not in _KEYS]
    if strange:
        advice = nearest(strange[0], _KEYS) or f"; known are {', '.join(_KEYS)}"
        raise SeqattnError(f"sample {number} has an unknown key {strange[0]!r}{advice}")
    if key not in sample:
        raise SeqattnError(f"sample {number} has no {key!r}; add it")
    return sample[key]


def _rows(
    sample: Mapping[str, Any], number: int, name: str, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    times = np.asarray(_get(sample, "times", number), dtype=np.float64)
    values = np.asarray(_get(sample, "values", number), dtype=np.float64)
    mask = np.asarray(sample.get("mask", ~np.isnan(values)), dtype=bool)
    if times.ndim != 1 or values.shape != (len(times), width) or mask.shape != values.shape:
        shapes = f"times {times.shape}, values {values.shape} and mask {mask.shape}"
        raise SeqattnError(
            f"sample {name} has {shapes}; with {width} variables they must be (rows,) and (rows, {width})"
        )
    row, channel = np.nonzero(mask)
    return np.full(len(row), number), times[row], channel, values[row, channel]


def _notes(
    samples: Sequence[Mapping[str, Any]], ids: Sequence[str], window: float, counts: dict[str, int]
) -> Notes | None:
    if not any("notes" in sample for sample in samples):
        return None
    owners, hours, contents = [], [], []
    for number, sample in enumerate(samples):
        notes, times = list(sample.get("notes", ())), np.asarray(sample.get("note_times", ()), dtype=np.float64)
        if len(notes) != len(times):
            raise SeqattnError(
                f"sample {ids[number]} has {len(notes)} notes and {len(times)} note_times; give one each"
            )
        kept = [place for place in np.argsort(times, kind="stable").tolist() if times[place] <= window]
        add(counts, "notes outside the window left out", len(notes) - len(kept))
        owners += [number] * len(kept)
        hours += [times[place] for place in kept]
        contents += [notes[place] for place in kept]
    starts, stamps = starts_of(np.array(owners, dtype=np.int64), len(ids)), np.array(hours, dtype=np.float32)
    if all(isinstance(content, str) for content in contents):
        return Notes(starts, stamps, tuple(contents))
    try:
        return Notes(starts, stamps, vectors=np.stack([np.asarray(v, dtype=np.float32) for v in contents]))
    except (ValueError, TypeError) as error:
        raise SeqattnError("notes must all be texts, or all vectors of one width; mend them") from error
