"""The events of a MEDS folder: its files read, checked and mapped to variables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.code_map import NOTES, UNMAPPED, CodeMap
from seqattn.data.clinical.events import add
from seqattn.data.clinical.tables import Table, read_table
from seqattn.errors import SeqattnError
from seqattn.optional import require


@dataclass(frozen=True, eq=False)
class Events:
    """Mapped events of all subjects, sorted by subject and time; time is microseconds, NaT before any other.

    text: (events,) of notes the text, "" of others. everyone: (subjects,) ascending, those without a mapped event too.
    """

    subject: NDArray[np.int64]
    time: NDArray[np.datetime64]
    channel: NDArray[np.int32]
    value: NDArray[np.float64]
    text: NDArray[np.object_]
    everyone: NDArray[np.int64]


def event_files(folder: Path, columns: tuple[str, ...]) -> Iterator[Table]:
    """The tables of data/, one after the other; raises SeqattnError where there is none or a column is missing."""
    require("pyarrow")
    paths = sorted(folder.glob("data/**/*.parquet"))
    if not paths:
        raise SeqattnError(f"{folder} has no data/**/*.parquet; it is no MEDS folder")
    for path in paths:
        yield read_table(path, columns, empty=True)


def read_events(folder: Path, mapping: CodeMap, counts: dict[str, int]) -> Events:
    """All events of the variables and notes of a code map; others, and notes without text, are left out and counted.

    Raises SeqattnError, naming file and row, for a missing code or subject, a time that is none, a numeric_value that
    is text, and an unknown category.
    """
    parts, subjects = [], []
    for table in event_files(folder, ("subject_id", "time", "code")):
        subject, time = table.whole_numbers("subject_id"), table.timestamps("time", gaps=True)
        codes, names = table.factorized("code")
        channel = mapping.channels(names.tolist())[codes] if len(names) else np.empty(0, np.int32)
        values, text = _values(table, channel, mapping), _note_texts(table, channel)
        empty = (channel == NOTES) & (text == "")
        add(counts, "events of codes that the code map lacks left out", (channel == UNMAPPED).sum())
        add(counts, "notes without text left out", empty.sum())
        kept = (channel != UNMAPPED) & ~empty
        parts.append(tuple(column[kept] for column in (subject, time, channel, values, text)))
        subjects.append(np.unique(subject))
    subject, time, channel, values, text = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((time.view(np.int64), subject))  # NaT is the smallest integer
    everyone = np.unique(np.concatenate(subjects))
    return Events(subject[order], time[order], channel[order], values[order], text[order], everyone)


def _note_texts(table: Table, channel: NDArray[np.int32]) -> NDArray[np.object_]:
    texts = np.full(len(table), "", dtype=object)
    if "text_value" in table.data:
        rows = np.flatnonzero(channel == NOTES)
        given = table.data["text_value"].iloc[rows].fillna("").astype(str)
        texts[rows] = given.where(given.str.strip() != "", "").to_numpy(object)
    return texts


def _values(table: Table, channel: NDArray[np.int32], mapping: CodeMap) -> NDArray[np.float64]:
    """(rows,) the values in the variables' units, NaN where there is none."""
    number = table.numbers("numeric_value") if "numeric_value" in table.data else np.full(len(table), np.nan)
    text = table.data["text_value"] if "text_value" in table.data else pd.Series(None, table.data.index, dtype=object)
    values = number * np.array([*mapping.factors, 1.0, 1.0])[channel]  # channels -1 and -2 are of no variable
    for place, (variable, present) in enumerate(zip(mapping.variables, mapping.presence, strict=True)):
        if present:
            values[channel == place] = 1
        elif variable.categories:
            for row in np.flatnonzero((channel == place) & np.isnan(number) & text.notna().to_numpy()):
                try:
                    values[row] = variable.number(str(text.iloc[row]))
                except SeqattnError as error:
                    raise table.fault(row, str(error)) from error
    return values
