"""Long tables of a user's own data: events and labels, and notes, static values, starts and splits if there are any."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqattn.data.clinical.events import add, sort_events
from seqattn.data.clinical.records import Floats, Indices, Notes, Stays, starts_of
from seqattn.data.clinical.schema import Schema, Variable, read_schema
from seqattn.data.clinical.stay_index import StayIndex
from seqattn.data.clinical.table_values import event_values, static_values, unfitted
from seqattn.data.clinical.tables import Table, find_table, read_table
from seqattn.errors import SeqattnError, nearest

_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {  # needed and other columns, None: any
    "events": (("id", "time", "variable", "value"), ("subject",)),
    "notes": (("id", "time", "text"), ("subject", "category")),
    "labels": (("id",), None),
    "static": (("id",), None),
    "anchors": (("id", "start"), ("subject",)),
    "splits": (("split",), ("id", "subject")),
}
_NOT_LABELS = ("id", "subject", "split", "window_end")
_SPLITS = {
    "train": "train", "valid": "valid", "test": "test", "training": "train", "val": "valid", "validation": "valid",
    "dev": "valid", "tuning": "valid", "held_out": "test",
}  # fmt: skip


def read_long_tables(
    folder: str | Path,
    *,
    window: float | None = None,
    earliest_note: float = -24.0,
    duplicates: str = "last",
    labelled: bool = True,
) -> Stays:
    """The stays of a folder of tables, each NAME.parquet or NAME.csv(.gz); only `events` and `labels` are needed.

    events: id, time, variable, value. notes: id, time, text [, category]. labels: id, one column of 0 and 1 for each
        label [, subject, split, window_end]. static: id [, subject] and one column for each value; a column of text
        becomes one variable for each text. anchors: id, start. splits: id or subject, split (train, valid, test), in
        place of the labels' column.
    time: hours from the start of the window (Parquet's durations too); or timestamps, with the table anchors. With
        window_end (hours or timestamps likewise) the window is the `window` hours before it. id names the stay, subject
        whose stay it is.
    value: numbers, or the categories of its variable. schema.json (`Schema.to_json`; statistics are not read) gives
        variables their kinds, ranges and categories; without it all are real and their ranges open.
    window: hours, default that of schema.json, else 48. earliest_note: hours, the first note that is kept.
    duplicates: for values of one stay, time and variable, see `sort_events`.
    labelled: False reads neither labels nor splits, for prediction.

    Events and notes outside the window are left out, stays without events are kept; both are counted. A label is a
    patient's: where static or anchors, which have a row for every stay, are there, one whose id no other table names is
    an error; where neither is, it is counted and kept as a stay without events.

    Raises SeqattnError for missing files, two files of one table, wrong columns, rows that cannot be read, ids that
    labels, static or anchors have twice, stays without a label or with two splits, and splits of absent patients.
    """
    folder = Path(folder)
    tables = {name: read_table(path, *_COLUMNS[name]) for name in _COLUMNS if (path := find_table(folder, name))}
    for name in ("events", "labels") if labelled else ("events",):
        if name not in tables:
            advice = nearest(name, {path.stem for path in folder.iterdir()} - set(tables)) or "; put it there"
            raise SeqattnError(f"{folder} has no table {name}.parquet or {name}.csv{advice}")
    schema = read_schema(folder / "schema.json") if (folder / "schema.json").is_file() else None
    return assemble(
        tables, schema, window=window or (schema.window if schema else 48.0), earliest_note=earliest_note,
        duplicates=duplicates, labelled=labelled,
    )  # fmt: skip


def assemble(
    tables: dict[str, Table],
    schema: Schema | None,
    *,
    window: float,
    earliest_note: float,
    duplicates: str,
    labelled: bool,
) -> Stays:
    """The stays of tables in memory, by name; `read_long_tables` says what they hold."""
    counts: dict[str, int] = {}
    index = StayIndex.of(tables, window, labelled, counts)
    variables, events = _events(tables["events"], index, schema, duplicates, counts)
    static_variables, static = static_values(tables.get("static"), index, schema)
    label_names, labels = _labels(tables.get("labels"), index, labelled)
    notes = _notes(tables["notes"], index, earliest_note, counts) if "notes" in tables else None
    subjects = _subjects(tables, index)
    return Stays(
        index.ids, subjects, _splits(tables, index, subjects, labelled), variables, window, *events,
        label_names=label_names, labels=labels, static_variables=static_variables, static=static, notes=notes,
        counts=counts,
    )  # fmt: skip


def _events(
    table: Table, index: StayIndex, schema: Schema | None, duplicates: str, counts: dict[str, int]
) -> tuple[tuple[Variable, ...], tuple[Indices, Floats, NDArray[np.int32], Floats]]:
    place, kept = index.places(table)
    channel, names = table.factorized("variable")
    known = {variable.name: variable for variable in schema.variables} if schema else {}
    variables = tuple(unfitted(known.get(name) or Variable(name)) for name in names.tolist())
    values = event_values(table, channel, variables)
    hours = index.hours(table, "time")
    strange = np.flatnonzero(np.isnan(hours) & kept)
    if len(strange):
        raise table.fault(strange[0], "the time is missing; give one")
    events = sort_events(
        place, hours[kept], channel[kept], values[kept], ids=index.ids, names=names, window=index.window,
        duplicates=duplicates, counts=counts,
    )  # fmt: skip
    return variables, events


def _notes(table: Table, index: StayIndex, earliest: float, counts: dict[str, int]) -> Notes:
    place, kept = index.places(table)
    hours = index.hours(table, "time")[kept]
    texts = table.data["text"].fillna("").astype(str)[kept]
    inside = (hours >= earliest) & (hours <= index.window) & (texts.str.strip() != "").to_numpy(bool)
    add(counts, "notes without text or outside the window left out", (~inside).sum())
    place, hours = place[inside], hours[inside].astype(np.float32)
    order = np.lexsort((hours, place))
    return Notes(starts_of(place, len(index.ids)), hours[order], tuple(texts[inside].iloc[order].tolist()))


def _labels(table: Table | None, index: StayIndex, labelled: bool) -> tuple[tuple[str, ...], Floats]:
    if table is None or not labelled:
        return (), np.empty((len(index.ids), 0), np.float32)
    names = tuple(name for name in table.data if name not in _NOT_LABELS)
    if not names:
        raise SeqattnError(f"{table.path} has no column with a label; add one of 0 and 1 to the column id")
    place, kept = index.places(table)
    labels = np.full((len(index.ids), len(names)), np.nan, np.float32)
    for column, name in enumerate(names):
        labels[place, column] = table.labels(name)[kept]
    return names, labels


def _subjects(tables: dict[str, Table], index: StayIndex) -> NDArray[np.str_]:
    """The subject of each stay, by the first table that has the column; where none has, each stay is one."""
    for name in ("labels", "static", "anchors", "events", "notes"):
        table = tables.get(name)
        if table is not None and "subject" in table.data:
            place, kept = index.places(table)
            codes, names = table.factorized("subject")
            subject = np.full(len(index.ids), -1)
            subject[place] = codes[kept]
            if (subject[place] != codes[kept]).any():
                row = int(np.flatnonzero(kept)[np.flatnonzero(subject[place] != codes[kept])[0]])
                raise table.fault(row, "the stay has another subject in another row; a stay has one subject")
            return np.where(subject < 0, np.char.add("stay ", index.ids), names[subject])
    return index.ids


def _splits(tables: dict[str, Table], index: StayIndex, subjects: NDArray[np.str_], labelled: bool) -> NDArray[np.str_]:
    named = [
        table for name in ("labels", "splits") if (table := tables.get(name)) is not None and "split" in table.data
    ]
    if not labelled or not named:
        return np.full(len(index.ids), "", dtype="U5")
    if len(named) > 1:
        raise SeqattnError(f"{named[0].path} has a column 'split' and there is {named[1].path} too; remove one of them")
    table = named[0]
    by = "id" if "id" in table.data else "subject"
    if by not in table.data:
        raise SeqattnError(f"{table.path} has neither a column id nor subject; add one beside split")
    owners = index.ids if by == "id" else subjects
    owner, owner_names = table.factorized(by)
    absent = np.setdiff1d(owner_names, owners)
    if len(absent):
        problem = f"{len(absent)} entries of {table.path} name no {by} of the data, the first is {absent[0]}"
        raise SeqattnError(f"{problem}; remove them")
    given = _split_of_each(table, by, owner, owner_names)
    found = np.minimum(np.searchsorted(owner_names, owners), len(owner_names) - 1)
    return np.where(owner_names[found] == owners, given[found], "")


def _split_of_each(table: Table, by: str, owner: NDArray[np.int64], owner_names: NDArray[np.str_]) -> NDArray[np.str_]:
    """(owners,) train, valid or test; raises SeqattnError for an unknown split, and for two of one owner."""
    codes, texts = table.factorized("split")
    unknown = [text for text in texts.tolist() if text.lower() not in _SPLITS]
    if unknown:
        row = int(np.flatnonzero(texts[codes] == unknown[0])[0])
        advice = nearest(unknown[0], _SPLITS) or "; it must be train, valid or test"
        raise table.fault(row, f"split is {unknown[0][:40]!r}{advice}")
    splits = np.array([_SPLITS[text.lower()] for text in texts.tolist()], dtype="U5")[codes]
    given = np.full(len(owner_names), "", dtype="U5")
    given[owner] = splits
    other = np.flatnonzero(given[owner] != splits)
    if len(other):
        row = int(other[0])
        problem = f"{by} {owner_names[owner[row]]} is in {splits[row]} here and in {given[owner[row]]} in a later row"
        raise table.fault(row, f"{problem}; remove one")
    return given
