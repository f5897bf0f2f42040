"""From a reader's stays to those a model takes: one channel order, limits, scaled values. Training and prediction."""

from dataclasses import replace

import numpy as np

from seqattn.data.clinical.records import Indices, Stays, gather, latest_notes, latest_rows, starts_of, static_as_events
from seqattn.data.clinical.schema import Schema, fit, normalise, numbering
from seqattn.errors import SeqattnError


def prepare(stays: Stays, *, static: bool = True, max_rows: int = 1000, max_notes: int = 5) -> Stays:
    """The stays with their static values as events at hour 0, and at most the latest rows and notes; cuts are counted.

    static=False leaves the static values out.
    """
    for name, limit in (("max_rows", max_rows), ("max_notes", max_notes)):
        if limit < 1:
            raise SeqattnError(f"{name} is {limit}; it must be at least 1")
    cut = latest_rows(stays, max_rows - 1 if static and stays.static.size else max_rows)  # before the row of hour 0
    cut = static_as_events(cut) if static else replace(cut, static_variables=(), static=np.empty((0, 0), np.float32))
    cut = latest_notes(cut, max_notes)
    return cut.counted("stays without events kept", int((np.diff(stays.starts) == 0).sum()))


def fit_schema(stays: Stays, train: Indices, steps: int) -> Schema:
    """The schema of the stays' variables, window and labels, with the statistics of the stays at `train` alone."""
    events, _ = gather(stays.starts, train)
    schema = Schema(stays.variables, stays.window, steps, stays.label_names)
    return fit(schema, stays.channel[events], stays.values[events])


def apply_schema(stays: Stays, schema: Schema, unknown: str = "error") -> Stays:
    """The stays with the schema's variables in the schema's order and normalised values; clipping is counted.

    unknown: what a variable that the schema lacks does: "error", or "ignore", which leaves its events out and counts
        them. A variable of the schema that the stays lack is simply never observed.

    Raises SeqattnError for an unknown variable and for another window than the schema's.
    """
    if stays.window != schema.window:
        problem = f"the stays have a window of {stays.window:g} hours, the schema one of {schema.window:g}"
        raise SeqattnError(f"{problem}; read them with the schema's window")
    numbers = numbering([variable.name for variable in stays.variables], schema, unknown)
    channel = numbers[stays.channel] if len(numbers) else stays.channel
    kept = channel >= 0
    owner = np.repeat(np.arange(len(stays)), np.diff(stays.starts))[kept]
    order = np.lexsort((channel[kept], stays.times[kept], owner))
    channel = channel[kept][order]
    values, clipped = normalise(schema, channel, stays.values[kept][order])
    aligned = replace(
        stays, variables=schema.variables, starts=starts_of(owner, len(stays)), times=stays.times[kept][order],
        channel=channel, values=values,
    )  # fmt: skip
    aligned = aligned.counted("events of variables that the schema lacks left out", int((~kept).sum()))
    worst = ", ".join(schema.names[number] for number in np.argsort(-clipped, kind="stable")[:3] if clipped[number])
    return aligned.counted(f"values clipped to their variable's range (most in {worst})", int(clipped.sum()))


def check_labels(stays: Stays, indices: Indices, part: str) -> None:
    """Raise SeqattnError where a stay of `part` lacks a label, or a label is neither 0 nor 1."""
    labels = stays.labels[indices]
    if not labels.shape[1]:
        raise SeqattnError("the data have no labels; give a table of labels with one column for each")
    strange = np.argwhere(~np.isin(labels, (0, 1)))
    if len(strange):
        row, column = strange[0]
        value, name = labels[row, column], stays.label_names[column]
        what = "has no" if np.isnan(value) else f"has {value:g} as"
        problem = f"stay {stays.ids[indices[row]]} of {part} {what} label {name!r}"
        raise SeqattnError(f"{problem}; every label must be 0 or 1, remove the stays without")


def check_training(stays: Stays, train: Indices) -> None:
    """Raise SeqattnError where the training part lacks one of the two values of a label, or all observations."""
    positive = stays.labels[train].mean(axis=0) if len(train) else np.zeros(len(stays.label_names))
    for name, rate in zip(stays.label_names, positive.tolist(), strict=True):
        if not 0 < rate < 1:
            raise SeqattnError(f"all training stays have the same label {name!r}; give stays of both kinds")
    if not np.diff(stays.starts)[train].any():
        raise SeqattnError("no training stay has an event inside the window; check times and window")


def count_unseen(stays: Stays, train: Indices) -> Stays:
    """The same stays, with the variables that no training stay has on the list of what was found."""
    events, _ = gather(stays.starts, train)
    seen = np.bincount(stays.channel[events], minlength=len(stays.variables))
    names = [variable.name for variable, count in zip(stays.variables, seen, strict=True) if not count]
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return stays.counted(f"variables that no training stay has ({listed})", len(names))
