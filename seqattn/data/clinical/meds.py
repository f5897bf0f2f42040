"""MEDS folders, version 0.4, read as stays, and their codes listed.

https://github.com/Medical-Event-Data-Standard/meds
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.code_map import NOTES, UNMAPPED, CodeMap, Matcher, read_code_map
from seqattn.data.clinical.events import Sorted, add, sort_events
from seqattn.data.clinical.records import Floats, Notes, Stays, starts_of
from seqattn.data.clinical.schema import Variable
from seqattn.data.clinical.tables import find_table, read_table
from seqattn.errors import SeqattnError
from seqattn.optional import require

MOST_CODES = 500  # that are taken as variables without a code map
NOTE_CODE = "NOTE"
_SPLITS = {"train": "train", "tuning": "valid", "held_out": "test"}
_VALUES = ("boolean_value", "integer_value", "float_value")


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

    Events without a time are static values. Splits are those of metadata/subject_splits.parquet: tuning is validation,
    held_out test. An id is SUBJECT@TIME.

    Raises SeqattnError for files that are missing or damaged, wrong columns, and codes that cannot be mapped.
    """
    folder = Path(folder)
    counts: dict[str, int] = {}
    mapping = _code_map(folder, code_map)
    events = _read_events(folder, mapping, counts)
    names, samples = _samples(folder, labels, events, labelled)
    stay, row, hours = _windows(events, samples, window)
    channel = events.channel[row]
    values = channel >= 0
    timed = sort_events(
        stay[values], hours[values], channel[values], events.value[row[values]], ids=samples["id"].to_numpy(np.str_),
        names=[variable.name for variable in mapping.variables], window=window, duplicates=duplicates, counts=counts,
    )  # fmt: skip
    variables, static_variables, timed, static = _static(mapping, events, samples, timed)
    is_note = channel == NOTES
    notes = None
    if (events.channel == NOTES).any():
        texts = tuple(str(text) for text in events.text[row[is_note]])
        notes = Notes(starts_of(stay[is_note], len(samples)), hours[is_note].astype(np.float32), texts)
    return Stays(
        samples["id"].to_numpy(np.str_), samples["subject_id"].astype(str).to_numpy(np.str_),
        _splits(folder, samples) if labelled else np.full(len(samples), ""), variables, window, *timed,
        label_names=names, labels=samples[list(names)].to_numpy(np.float32), static_variables=static_variables,
        static=static, notes=notes, counts=counts,
    )  # fmt: skip


def code_frequencies(folder: str | Path) -> list[tuple[str, int, int]]:
    """Code, rows and rows with a number of every code of a MEDS folder, or variable of long tables, the most first."""
    folder = Path(folder)
    rows: dict[str, NDArray[np.int64]] = {}
    if is_meds(folder):
        tables: Iterator[pd.DataFrame] = (table for _, table in _files(folder, ("code",)))
    else:
        path = find_table(folder, "events")
        if path is None:
            raise SeqattnError(f"{folder} has neither MEDS files in data/ nor a table events; check the path")
        table = read_table(path, ("variable", "value")).data
        number = pd.to_numeric(table["value"], errors="coerce")
        tables = iter([pd.DataFrame({"code": table["variable"], "numeric_value": number})])
    for table in tables:
        number = table["numeric_value"] if "numeric_value" in table else pd.Series(np.nan, table.index)
        counted = number.groupby(table["code"], observed=True).agg(["size", "count"])
        for code, both in zip(counted.index.astype(str), counted.to_numpy(np.int64), strict=True):
            rows[code] = rows.get(code, 0) + both
    listed = [(code, int(both[0]), int(both[1])) for code, both in rows.items()]
    return sorted(listed, key=lambda entry: (-entry[1], entry[0]))


@dataclass(frozen=True, eq=False)
class _Events:
    """Mapped events of all subjects, sorted by subject and time; time is microseconds, NaT before any other."""

    subject: NDArray[np.int64]
    time: NDArray[np.datetime64]
    channel: NDArray[np.int32]
    value: NDArray[np.float64]
    text: NDArray[np.object_]


def _files(folder: Path, columns: tuple[str, ...]) -> Iterator[tuple[Path, pd.DataFrame]]:
    require("pyarrow")
    paths = sorted(folder.glob("data/**/*.parquet"))
    if not paths:
        raise SeqattnError(f"{folder} has no data/**/*.parquet; it is no MEDS folder")
    for path in paths:
        yield path, read_table(path, columns, empty=True).data


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


def _read_events(folder: Path, mapping: CodeMap, counts: dict[str, int]) -> _Events:
    parts = []
    for path, table in _files(folder, ("subject_id", "time", "code")):
        codes, names = pd.factorize(table["code"])
        channel = mapping.channels([str(name) for name in names])[codes]
        add(counts, "events of codes that the code map lacks left out", (channel == UNMAPPED).sum())
        chosen = table[channel != UNMAPPED]
        channel = channel[channel != UNMAPPED]
        text = chosen["text_value"] if "text_value" in chosen else pd.Series(None, chosen.index, dtype=object)
        number = chosen["numeric_value"] if "numeric_value" in chosen else pd.Series(np.nan, chosen.index)
        values = _mapped_values(number.to_numpy(np.float64, na_value=np.nan), text, channel, mapping, path)
        subject = chosen["subject_id"].to_numpy(np.int64)
        parts.append((subject, chosen["time"].to_numpy("datetime64[us]"), channel, values, text.to_numpy(object)))
    subject, time, channel, values, text = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((time.view(np.int64), subject))  # NaT is the smallest integer
    return _Events(subject[order], time[order], channel[order], values[order], text[order])


def _mapped_values(
    number: NDArray[np.float64], text: pd.Series, channel: NDArray[np.int32], mapping: CodeMap, path: Path
) -> NDArray[np.float64]:
    factor = np.array([*mapping.factors, 1.0])[channel]  # a note's channel is -2: any factor will do
    values = number * factor
    for place, (variable, present) in enumerate(zip(mapping.variables, mapping.presence, strict=True)):
        if present:
            values[channel == place] = 1
        elif variable.categories:
            for row in np.flatnonzero((channel == place) & np.isnan(number) & text.notna().to_numpy()):
                try:
                    values[row] = variable.number(str(text.iloc[row]))
                except SeqattnError as error:
                    raise SeqattnError(f"{path}: {error}") from error
    return values


def _samples(
    folder: Path, labels: str | Path | None, events: _Events, labelled: bool
) -> tuple[tuple[str, ...], pd.DataFrame]:
    """The labels' names, and one row a stay: id, subject_id, prediction_time and the labels."""
    where = folder / "labels" if labels is None else Path(labels)
    tasks = sorted({path for path in where.glob("*") if path.is_dir() or path.suffix == ".parquet"})
    if labelled and not tasks:
        raise SeqattnError(f"{where} holds no label files; put one .parquet for each label there")
    if not tasks:
        last = np.flatnonzero(np.append(events.subject[1:] != events.subject[:-1], True))
        last = last[~np.isnat(events.time[last])]
        merged = pd.DataFrame({"subject_id": events.subject[last], "prediction_time": events.time[last]})
        return (), _identified(merged)
    merged = None
    for task in tasks:
        table = _label_table(task)
        merged = table if merged is None else merged.merge(table, on=["subject_id", "prediction_time"], how="outer")
    names = tuple(task.stem for task in tasks) if labelled else ()
    merged = merged.sort_values(["subject_id", "prediction_time"], ignore_index=True)
    return names, _identified(merged)


def _identified(samples: pd.DataFrame) -> pd.DataFrame:
    times = samples["prediction_time"].to_numpy("datetime64[us]")
    ids = [f"{subject}@{time}" for subject, time in zip(samples["subject_id"], times, strict=True)]
    return samples.assign(id=np.array(ids, dtype=np.str_))


def _label_table(task: Path) -> pd.DataFrame:
    paths = sorted(task.rglob("*.parquet")) if task.is_dir() else [task]
    require("pyarrow")
    parts = []
    for path in paths:
        table = read_table(path, ("subject_id", "prediction_time")).data
        column = next((name for name in _VALUES if name in table and table[name].notna().any()), None)
        if column is None:
            raise SeqattnError(f"{path} has no label in {', '.join(_VALUES)}; give one of them")
        time = table["prediction_time"].to_numpy("datetime64[us]")
        values = table[column].astype("float64").to_numpy()
        parts.append(pd.DataFrame({"subject_id": table["subject_id"], "prediction_time": time, task.stem: values}))
    joined = pd.concat(parts, ignore_index=True)
    twice = joined.duplicated(["subject_id", "prediction_time"])
    if twice.any():
        first = joined[twice].iloc[0]
        problem = f"{task} labels subject {first['subject_id']} at {first['prediction_time']} twice"
        raise SeqattnError(f"{problem}; remove one")
    return joined


def _windows(
    events: _Events, samples: pd.DataFrame, window: float
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


def _static(
    mapping: CodeMap, events: _Events, samples: pd.DataFrame, timed: Sorted
) -> tuple[tuple[Variable, ...], tuple[Variable, ...], Sorted, Floats]:
    """Variables with times, static ones, the events numbered anew, and static values (stays, static variables).

    A variable all of whose events lack a time is static.
    """
    fixed = np.isnat(events.time) & (events.channel >= 0)
    ever_timed = np.bincount(events.channel[~fixed & (events.channel >= 0)], minlength=len(mapping.variables)) > 0
    static_channels = np.setdiff1d(np.unique(events.channel[fixed]), np.flatnonzero(ever_timed))
    number = np.cumsum(~np.isin(np.arange(len(mapping.variables)), static_channels)) - 1
    starts, times, channel, values = timed
    known = np.full((len(samples), len(static_channels)), np.nan, np.float32)
    subjects = samples["subject_id"].to_numpy()
    for column, place in enumerate(static_channels.tolist()):
        chosen = fixed & (events.channel == place)
        by_subject = dict(zip(events.subject[chosen].tolist(), events.value[chosen].tolist(), strict=True))
        known[:, column] = [by_subject.get(subject, np.nan) for subject in subjects.tolist()]
    variables = tuple(v for place, v in enumerate(mapping.variables) if place not in static_channels)
    static_variables = tuple(mapping.variables[place] for place in static_channels)
    return variables, static_variables, (starts, times, number[channel].astype(np.int32), values), _finite(known)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _splits(folder: Path, samples: pd.DataFrame) -> NDArray[np.str_]:
    path = folder / "metadata" / "subject_splits.parquet"
    if not path.is_file():
        return np.full(len(samples), "")
    table = read_table(path, ("subject_id", "split"))
    strange = [str(name) for name in table.data["split"].unique() if name not in _SPLITS]
    if strange:
        raise SeqattnError(f"{path}: split is {strange[0]!r}; it must be train, tuning or held_out")
    given = dict(zip(table.data["subject_id"].tolist(), table.data["split"].map(_SPLITS), strict=True))
    return np.array([given.get(subject, "") for subject in samples["subject_id"].tolist()], dtype=np.str_)
