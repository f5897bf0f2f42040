"""Files of note vectors that were made beforehand, joined to stays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqattn.data.clinical.events import add
from seqattn.data.clinical.records import Floats, Indices, Notes, Stays, starts_of
from seqattn.data.clinical.tables import Table, read_table
from seqattn.errors import SeqattnError

EARLIEST = -24.0  # hours: vectors of earlier notes are left out, as the readers do with notes


def is_vector_file(spec: str) -> bool:
    """Whether `spec` names a file of vectors rather than an encoder."""
    return Path(spec).suffix in (".npy", ".parquet")


def attach_vectors(stays: Stays, path: str | Path) -> Stays:
    """The stays with note vectors that any encoder made before; call it before notes are cut.

    NAME.npy: (rows, width) numbers, beside NAME.csv with one line for each row; NAME.parquet: the same columns and
    `vector`, a list of numbers. Columns: id, the stay, and either note, the position from 0 among the stay's notes in
    the order of time, or time, in hours from the window's start, which makes the vectors notes of their own.
    Vectors of stays that are not there are left out and counted, as are those of times outside the window.

    Raises SeqattnError for files that are missing or do not fit together, for a note without a vector or with two, and
    for the number of a note that there is not.
    """
    path = Path(path)
    table, vectors = _table_and_vectors(path)
    codes, names = table.factorized("id")
    order = np.argsort(stays.ids)
    found = np.minimum(np.searchsorted(stays.ids[order], names), len(order) - 1)
    place = order[found]
    kept = (stays.ids[place] == names)[codes]
    if not kept.any():
        raise SeqattnError(
            f"{table.path} names no stay of the data, its first id is {names[codes[0]]}; give stays' ids"
        )
    stays = stays.counted("note vectors of stays that are not there left out", int((~kept).sum()))
    owner, row = place[codes][kept], np.flatnonzero(kept)
    if "note" in table.data:
        return _matched(stays, table, owner, row, vectors[kept])
    if stays.notes is not None:
        raise SeqattnError(f"{path} has no column 'note', and the data have notes of their own; say which is which")
    if table.is_time("time"):
        raise table.fault(0, "time is a timestamp; give hours from the window's start")
    return _as_notes(stays, owner, table.numbers("time")[kept], vectors[kept])


def _table_and_vectors(path: Path) -> tuple[Table, Floats]:
    beside = path.with_suffix(".csv") if path.suffix == ".npy" else path
    for file in (path, beside):
        if not file.is_file():
            raise SeqattnError(f"{file} does not exist; a file of vectors is .parquet, or .npy with a .csv beside it")
    table = read_table(beside, ("id",) if path.suffix == ".npy" else ("id", "vector"))
    if ("note" in table.data) == ("time" in table.data):
        raise SeqattnError(f"{beside} must have one of the columns 'note' and 'time'; it tells which note a row is")
    try:
        if path.suffix == ".npy":
            vectors = np.load(path, allow_pickle=False)
        else:
            vectors = np.stack([np.asarray(vector, dtype=np.float32) for vector in table.data["vector"]])
        vectors = vectors.astype(np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise SeqattnError(f"{path} does not hold vectors of one width; write it anew") from error
    if vectors.ndim != 2 or len(vectors) != len(table):
        raise SeqattnError(f"{path} has the shape {vectors.shape} for {len(table)} rows; it must be (rows, width)")
    if not np.isfinite(vectors).all():
        raise SeqattnError(f"{path} holds a NaN or an infinite value in row {_first_bad(vectors)}; mend it")
    return table, vectors


def _first_bad(vectors: Floats) -> int:
    return int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0]) + 1


def _matched(stays: Stays, table: Table, owner: Indices, row: Indices, vectors: Floats) -> Stays:
    """The vectors as those of the stays' notes; owner, row: the stay, and the row in the table, of each."""
    if stays.notes is None:
        raise SeqattnError(f"{table.path} counts notes, but the data have none; give a column 'time' instead of 'note'")
    sizes, number = np.diff(stays.notes.starts), table.whole_numbers("note")[row]
    for wrong in np.flatnonzero((number < 0) | (number >= sizes[owner]))[:1]:
        problem = f"stay {stays.ids[owner[wrong]]} has {sizes[owner[wrong]]} notes, none of number {number[wrong]}"
        raise table.fault(row[wrong], f"{problem}; count them from 0, in the order of time")
    target = stays.notes.starts[owner] + number
    twice = np.setdiff1d(np.arange(len(target)), np.unique(target, return_index=True)[1])
    for second in twice[:1]:
        problem = f"note {number[second]} of stay {stays.ids[owner[second]]} is there twice"
        raise table.fault(row[second], f"{problem}; give each note one vector")
    joined = np.full((len(stays.notes.times), vectors.shape[1]), np.nan, np.float32)
    joined[target] = vectors
    missing = np.flatnonzero(np.isnan(joined[:, 0]))
    if len(missing):
        stay = int(np.searchsorted(stays.notes.starts, missing[0], side="right")) - 1
        which = f"note {missing[0] - stays.notes.starts[stay]} of stay {stays.ids[stay]}"
        raise SeqattnError(f"{table.path} has no vector for {len(missing)} notes, the first is {which}; add them")
    return replace(stays, notes=replace(stays.notes, vectors=joined))


def _as_notes(stays: Stays, owner: Indices, hours: NDArray[np.float64], vectors: Floats) -> Stays:
    inside = (hours >= EARLIEST) & (hours <= stays.window)
    counts = dict(stays.counts)
    add(counts, "notes outside the window left out", (~inside).sum())
    owner, times, vectors = owner[inside], hours[inside].astype(np.float32), vectors[inside]
    order = np.lexsort((times, owner))
    notes = Notes(starts_of(owner, len(stays)), times[order], vectors=vectors[order])
    return replace(stays, notes=notes, counts=counts)
