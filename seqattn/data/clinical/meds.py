"""MEDS folders, version 0.4, read as stays, and their codes listed.

https://github.com/Medical-Event-Data-Standard/meds
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.code_map import NOTES, CodeMap, Matcher, read_code_map
from seqattn.data.clinical.events import Sorted, add, sort_events
from seqattn.data.clinical.meds_events import Events, event_files, read_events
from seqattn.data.clinical.meds_labels import read_samples, read_splits
from seqattn.data.clinical.records import Floats, Notes, Stays, starts_of
from seqattn.data.clinical.schema import Variable
from seqattn.data.clinical.tables import Table, find_table, read_table
from seqattn.errors import SeqattnError

MOST_CODES = 500  # that are taken as variables without a code map
NOTE_CODE = "NOTE"


def is_meds(folder: Path) -> bool:
    """Whether a folder has the files of MEDS."""
    return (folder / "metadata" / "dataset.json").is_file() or next(folder.glob("data/**/*.parquet"), None) is not None


def read_meds(
    folder: str | Path,
    *,
    window: float = 48.0,
    code_map: str | Path | None = None,
    labels: str | Path | None = None,
    duplicates: str = "last",
    labelled: bool = True,
) -> Stays:
    """One stay for each subject and prediction time of the labels, with the `window` hours up to that time, inclusive.

    code_map: YAML (`read_code_map`), default code_map.yaml in the folder; events of no variable are left out and
        counted. Without one, every code is a variable, MOST_CODES at most, and the code NOTE a note.
    labels: a folder of label files, default `labels` in the folder; each file, or folder of files, is one label, of the
        value 0 and 1. Labels of one subject and time become one stay.
    duplicates: for values of one stay, time and variable, see `sort_events`.
    labelled: False takes subjects and times of the labels without their values and splits; without labels, each subject
        at its last event.

    A variable none of whose events has a time is static; events without a time of other variables are left out and
    counted, as are events outside every window, repeated static values, and notes without text or time. Splits are
    those of metadata/subject_splits.parquet: tuning is validation, held_out test. An id is SUBJECT@TIME.
    data/ names every subject: labels and splits of any other are an error; a stay without events is kept and counted.

    Raises SeqattnError for files that are missing or damaged, wrong columns, codes that cannot be mapped, and rows
    without subject, code, prediction_time or label.
    """
    folder = Path(folder)
    counts: dict[str, int] = {}
    mapping = _code_map(folder, code_map)
    events = read_events(folder, mapping, counts)
    names, samples = read_samples(folder, labels, events, labelled, counts)
    stay, row, hours = _windows(events, samples, window)
    _count_left_out(events, samples, row, counts)
    channel = events.channel[row]
    values = channel >= 0
    timed = sort_events(
        stay[values], hours[values], channel[values], events.value[row[values]], ids=samples["id"].to_numpy(np.str_),
        names=[variable.name for variable in mapping.variables], window=window, duplicates=duplicates, counts=counts,
    )  # fmt: skip
    variables, static_variables, timed, static = _static(mapping, events, samples, timed, counts)
    is_note = channel == NOTES
    notes = None
    if (events.channel == NOTES).any():
        texts = tuple(events.text[row[is_note]].tolist())
        notes = Notes(starts_of(stay[is_note], len(samples)), hours[is_note].astype(np.float32), texts)
    return Stays(
        samples["id"].to_numpy(np.str_), samples["subject_id"].astype(str).to_numpy(np.str_),
        read_splits(folder, samples, events) if labelled else np.full(len(samples), ""), variables, window, *timed,
        label_names=names, labels=samples[list(names)].to_numpy(np.float32), static_variables=static_variables,
        static=static, notes=notes, counts=counts,
    )  # fmt: skip


def code_frequencies(folder: str | Path) -> list[tuple[str, int, int]]:
    """Code, rows and rows with a number of every code of a MEDS folder, or variable of long tables, the most first."""
    folder = Path(folder)
    code, value = ("code", "numeric_value") if is_meds(folder) else ("variable", "value")
    rows: dict[str, NDArray[np.int64]] = {}
    for table in event_files(folder, (code,)) if is_meds(folder) else _long_events(folder):
        codes, names = table.factorized(code)
        given = table.data[value] if value in table.data else pd.Series(np.nan, table.data.index)
        number = pd.to_numeric(given, errors="coerce").notna().to_numpy()
        sizes = np.bincount(codes, minlength=len(names)), np.bincount(codes[number], minlength=len(names))
        for name, both in zip(names.tolist(), np.stack(sizes, axis=1), strict=True):
            rows[name] = rows.get(name, 0) + both
    listed = [(code, int(both[0]), int(both[1])) for code, both in rows.items()]
    return sorted(listed, key=lambda entry: (-entry[1], entry[0]))


def _long_events(folder: Path) -> list[Table]:
    path = find_table(folder, "events")
    if path is None:
        raise SeqattnError(f"{folder} has neither MEDS files in data/ nor a table events; check the path")
    return [read_table(path, ("variable", "value"))]


def _code_map(folder: Path, given: str | Path | None) -> CodeMap:
    path = folder / "code_map.yaml" if given is None else Path(given)
    if given is not None or path.is_file():
        return read_code_map(path)
    codes = [code for code, _, numbers in code_frequencies(folder) if numbers and code != NOTE_CODE]
    if len(codes) > MOST_CODES:
        problem = f"{folder} has {len(codes)} codes with numbers, too many to be variables"
        raise SeqattnError(f"{problem}; list them with 'seqattn ehr-codes {folder}' and write a code map")
    codes.sort()
    variables = tuple(Variable(code) for code in codes)
    matchers = tuple(Matcher(frozenset([code])) for code in codes)
    ones = (1.0,) * len(codes)
    return CodeMap(variables, matchers, ones, (False,) * len(codes), Matcher(frozenset([NOTE_CODE])))


def _windows(
    events: Events, samples: pd.DataFrame, window: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Stay, row in `events` and hours from the window's start of every event inside a stay's window."""
    ends = samples["prediction_time"].to_numpy("datetime64[us]")
    begins = ends - np.timedelta64(round(window * 3600 * 10**6), "us")
    stays, rows = [], []
    for number, (subject, begin, end) in enumerate(zip(samples["subject_id"].to_numpy(), begins, ends, strict=True)):
        low, high = np.searchsorted(events.subject, [subject, subject + 1])
        times = events.time[low:high].view(np.int64)
        first = low + np.searchsorted(times, begin.astype(np.int64), side="left")
        after = low + np.searchsorted(times, end.astype(np.int64), side="right")
        rows.append(np.arange(first, after))
        stays.append(np.full(after - first, number))
    stay, row = np.concatenate(stays), np.concatenate(rows)
    return stay, row, (events.time[row] - begins[stay]) / np.timedelta64(1, "us") / 3.6e9


def _count_left_out(events: Events, samples: pd.DataFrame, row: NDArray[np.int64], counts: dict[str, int]) -> None:
    """Count the events that are in no stay; `row` are those that are in one. `_static` counts those without a time."""
    known = np.isin(events.subject, samples["subject_id"].to_numpy())
    used = np.zeros(len(known), dtype=bool)
    used[row] = True
    timed, note = ~np.isnat(events.time), events.channel == NOTES
    add(counts, "events and notes of subjects without a label left out", (~known).sum())
    add(counts, "events outside the window left out", (known & timed & ~used & ~note).sum())
    add(counts, "notes outside the window left out", (known & timed & ~used & note).sum())
    add(counts, "notes without a time left out", (known & ~timed & note).sum())


def _static(
    mapping: CodeMap, events: Events, samples: pd.DataFrame, timed: Sorted, counts: dict[str, int]
) -> tuple[tuple[Variable, ...], tuple[Variable, ...], Sorted, Floats]:
    """Variables with times, static ones, the events numbered anew, and static values (stays, static variables).

    A variable all of whose events lack a time is static.
    """
    subjects = samples["subject_id"].to_numpy()
    fixed = np.isnat(events.time) & (events.channel >= 0)
    ever_timed = np.bincount(events.channel[~fixed & (events.channel >= 0)], minlength=len(mapping.variables)) > 0
    static_channels = np.setdiff1d(np.unique(events.channel[fixed]), np.flatnonzero(ever_timed))
    number = np.cumsum(~np.isin(np.arange(len(mapping.variables)), static_channels)) - 1
    starts, times, channel, values = timed
    here = fixed & np.isin(events.subject, subjects)
    phrase = "events without a time, of variables that have one elsewhere, left out"
    add(counts, phrase, ever_timed[events.channel[here]].sum())
    known = np.full((len(samples), len(static_channels)), np.nan, np.float32)
    for column, place in enumerate(static_channels.tolist()):
        chosen = np.flatnonzero(here & (events.channel == place))
        finite = np.isfinite(events.value[chosen].astype(np.float32))
        add(counts, "static values missing or infinite left out", (~finite).sum())
        by_subject = dict(zip(events.subject[chosen[finite]].tolist(), events.value[chosen[finite]], strict=True))
        add(counts, "static values repeated: last kept", finite.sum() - len(by_subject))
        known[:, column] = [by_subject.get(subject, np.nan) for subject in subjects.tolist()]
    variables = tuple(v for place, v in enumerate(mapping.variables) if place not in static_channels)
    static_variables = tuple(mapping.variables[place] for place in static_channels)
    return variables, static_variables, (starts, times, number[channel].astype(np.int32), values), known
