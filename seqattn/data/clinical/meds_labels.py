"""The labels and splits of a MEDS folder."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.events import add
from seqattn.data.clinical.meds_events import Events
from seqattn.data.clinical.tables import Table, read_table
from seqattn.errors import SeqattnError
from seqattn.optional import require

_SPLITS = {"train": "train", "tuning": "valid", "held_out": "test"}
_VALUES = ("boolean_value", "integer_value", "float_value")
_KEYS = ["subject_id", "prediction_time"]


def read_samples(
    folder: Path, labels: str | Path | None, events: Events, labelled: bool, counts: dict[str, int]
) -> tuple[tuple[str, ...], pd.DataFrame]:
    """The labels' names, and one row a stay: id, subject_id, prediction_time and, if `labelled`, the labels.

    Without label files and labels, each subject at its last event; subjects without one are left out and counted.

    Raises SeqattnError for missing label files, a label without a value, subject or time, and one of a subject that
    data/ lacks.
    """
    where = folder / "labels" if labels is None else Path(labels)
    tasks = sorted({path for path in where.glob("*") if path.is_dir() or path.suffix == ".parquet"})
    if labelled and not tasks:
        raise SeqattnError(f"{where} holds no label files; put one .parquet for each label there")
    if not tasks:
        return (), _identified(_last_events(folder, events, counts))
    names = tuple(task.stem for task in tasks)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SeqattnError(f"{where} has both a folder {twice} and {twice}.parquet; remove one")
    merged = _label_table(tasks[0], events, labelled)
    for task in tasks[1:]:
        merged = merged.merge(_label_table(task, events, labelled), on=_KEYS, how="outer")
    return names if labelled else (), _identified(merged.sort_values(_KEYS, ignore_index=True))


def read_splits(folder: Path, samples: pd.DataFrame, events: Events) -> NDArray[np.str_]:
    """(stays,) train, valid or test, "" where metadata/subject_splits.parquet does not say.

    Raises SeqattnError for an unknown split, a subject with two, and a subject that data/ lacks.
    """
    path = folder / "metadata" / "subject_splits.parquet"
    if not path.is_file():
        return np.full(len(samples), "")
    table = read_table(path, ("subject_id", "split"))
    subjects, (codes, texts) = table.whole_numbers("subject_id"), table.factorized("split")
    names = texts[codes].tolist()
    for row in [row for row, name in enumerate(names) if name not in _SPLITS][:1]:
        raise table.fault(row, f"split is {names[row]!r}; it must be train, tuning or held_out")
    table.check_once("subject_id", "subject")
    _check_present(table, subjects, events)
    given = dict(zip(subjects.tolist(), (_SPLITS[name] for name in names), strict=True))
    return np.array([given.get(subject, "") for subject in samples["subject_id"].tolist()], dtype=np.str_)


def _last_events(folder: Path, events: Events, counts: dict[str, int]) -> pd.DataFrame:
    timed = np.flatnonzero(~np.isnat(events.time))
    subjects = events.subject[timed]
    last = timed[np.searchsorted(subjects, np.unique(subjects), side="right") - 1]
    if not len(last):
        raise SeqattnError(f"{folder} has no event with a time of a variable or note; check its code map")
    add(counts, "subjects without an event that has a time left out", len(events.everyone) - len(last))
    return pd.DataFrame({"subject_id": events.subject[last], "prediction_time": events.time[last]})


def _identified(samples: pd.DataFrame) -> pd.DataFrame:
    times = samples["prediction_time"].to_numpy("datetime64[us]")
    ids = [f"{subject}@{time}" for subject, time in zip(samples["subject_id"], times, strict=True)]
    return samples.assign(id=np.array(ids, dtype=np.str_))


def _label_table(task: Path, events: Events, labelled: bool) -> pd.DataFrame:
    """subject_id, prediction_time and, if `labelled`, the label under the task's name."""
    paths = sorted(task.rglob("*.parquet")) if task.is_dir() else [task]
    require("pyarrow")
    if not paths:
        raise SeqattnError(f"the folder {task} holds no label file *.parquet; put one there or remove it")
    parts = []
    for path in paths:
        table = read_table(path, _KEYS)
        subjects = table.whole_numbers("subject_id")
        _check_present(table, subjects, events)
        part = pd.DataFrame({"subject_id": subjects, "prediction_time": table.timestamps("prediction_time")})
        parts.append(part.assign(**{task.stem: _label_values(table)}) if labelled else part)
    joined = pd.concat(parts, ignore_index=True)
    twice = joined.duplicated(_KEYS)
    if twice.any():
        first = joined[twice].iloc[0]
        problem = f"{task} labels subject {first['subject_id']} at {first['prediction_time']} twice"
        raise SeqattnError(f"{problem}; remove one")
    return joined


def _label_values(table: Table) -> NDArray[np.float64]:
    column = next((name for name in _VALUES if name in table.data and table.data[name].notna().any()), None)
    if column is None:
        raise SeqattnError(f"{table.path} has no label in {', '.join(_VALUES)}; give one of them")
    return table.labels(column)


def _check_present(table: Table, subjects: NDArray[np.int64], events: Events) -> None:
    absent = np.flatnonzero(~np.isin(subjects, events.everyone))
    if len(absent):
        problem = f"{len(absent)} rows are of subjects without an event in data/, the first is {subjects[absent[0]]}"
        raise table.fault(absent[0], f"{problem}; remove them")
