"""MIMIC-III as the folders of mimic3-benchmarks, with notes: in-hospital mortality and phenotypes of the first day.

https://github.com/YerevaNN/mimic3-benchmarks; the notes' format is that of ClinicalNotesICU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.archives import data_folder, joined, no_number
from seqattn.data.clinical.events import add, sort_events
from seqattn.data.clinical.mimic3_notes import Clock, find_notes, read_notes
from seqattn.data.clinical.mimic3_variables import VARIABLES
from seqattn.data.clinical.records import Floats, Indices, Stays
from seqattn.data.clinical.schema import Variable
from seqattn.data.clinical.tables import read_table
from seqattn.errors import SeqattnError

_COLUMNS = ["Hours", *(variable.name for variable in VARIABLES)]
_LISTS = {"train": "train", "val": "valid", "test": "test"}  # listfile -> split
_ROUNDING = 1e-6  # hours, as the benchmark allows at the ends of a window


@dataclass(frozen=True)
class Task:
    """folder: of the task in the data. window: hours. shortest: hours a stay must last."""

    folder: str
    window: float
    shortest: float


TASKS = {"ihm": Task("in-hospital-mortality", 48.0, 48.0), "pheno": Task("phenotyping", 24.0, 24.0)}


def read_mimic3(
    data_dir: str | Path | None = None,
    *,
    task: Literal["ihm", "pheno"] = "ihm",
    notes_dir: str | Path | None = None,
    clock: Literal["intime", "official"] = "intime",
    start_times: str | Path | None = None,
    earliest_note: float = -24.0,
    duplicates: str = "last",
    labelled: bool = True,
    with_notes: bool = True,
) -> Stays:
    """The stays of {task}/{train,val,test}_listfile.csv, with the series and notes of their window.

    task: "ihm", death in hospital from the first 48 hours (the benchmark has 14,681 / 3,222 / 3,236 stays); "pheno", 25
        phenotypes from the first 24 hours of stays that last as long, of which the benchmark keeps the whole stay.
    notes_dir: files SUBJECT_N, default the folder `notes` of the data where there is one; see `read_notes`.
    clock: "intime" counts a note's hours from the stay's INTIME in root/, as the series do, and keeps those from
        earliest_note to the window's end. "official" repeats arXiv 2210.12156: hours since the time that `start_times`
        (a CSV or JSON file) gives for the stay, less 1, and any earlier note; such notes appear up to two hours early,
        and some of those it keeps were written after the window: it leaks.
    duplicates: for values of one stay, time and variable, see `sort_events`.
    labelled: False takes the stays of test_listfile.csv, or without it all in {task}/test, without labels.
    with_notes: False leaves the notes' files alone.

    Raises SeqattnError for options out of range, files that are missing or damaged, and rows that cannot be read.
    """
    if task not in TASKS:
        raise SeqattnError(f"task is {task!r}; it must be 'ihm' or 'pheno'")
    if clock not in ("intime", "official"):
        raise SeqattnError(f"clock is {clock!r}; it must be 'intime' or 'official'")
    wanted = TASKS[task]
    root = data_folder("mimic3", (wanted.folder,), data_dir)
    counts: dict[str, int] = {}
    listed = _listed(root / wanted.folder, wanted, labelled, counts)
    events, ids = _series(root / wanted.folder, listed, wanted.window, duplicates, counts)
    labels = tuple(name for name in listed if name not in ("stay", "period_length", "split", "file"))
    notes, found = None, find_notes(root, notes_dir) if with_notes else None
    if found is not None:
        settings = Clock(clock, None if start_times is None else Path(start_times), earliest_note)
        notes = read_notes(found, root / "root", ids, wanted.window, settings, counts)
    return Stays(
        ids, np.array([name.partition("_")[0] for name in ids.tolist()]), listed["split"].to_numpy(np.str_), VARIABLES,
        wanted.window, *events, label_names=labels, labels=listed[list(labels)].to_numpy(np.float32), notes=notes,
        counts=counts,
    )  # fmt: skip


def _listed(folder: Path, task: Task, labelled: bool, counts: dict[str, int]) -> pd.DataFrame:
    """One row a stay: stay, labels, split, and the folder of its file."""
    tables: list[pd.DataFrame] = []
    for name, split in _LISTS.items() if labelled else [("test", "test")]:
        path = folder / f"{name}_listfile.csv"
        if path.is_file():
            table = _listfile(path, labelled)
        elif not labelled:
            table = pd.DataFrame({"stay": sorted(file.name for file in (folder / "test").glob("*_timeseries.csv"))})
        elif name == "val":
            continue  # the benchmark makes it in a step of its own
        else:
            raise SeqattnError(f"{path} does not exist; make it with the benchmark's split_train_val")
        where = "test" if name == "test" else "train"
        tables.append(table.assign(split=split if labelled else "", file=where))
    listed = pd.concat(tables, ignore_index=True)
    for twice in listed["stay"][listed["stay"].duplicated()].tolist()[:1]:
        raise SeqattnError(f"{folder}: stay {twice} is in two of its listfiles; remove it from all but one")
    if not len(listed):
        raise SeqattnError(f"{folder} lists no stays; check that the benchmark's extraction has finished")
    if "period_length" in listed:
        short = listed["period_length"].to_numpy(np.float64) < task.shortest
        add(counts, f"stays shorter than {task.shortest:g} hours left out", short.sum())
        listed = listed[~short].reset_index(drop=True)
    return listed.rename(columns={"y_true": "mortality"}) if labelled else listed[["stay", "split", "file"]]


def _listfile(path: Path, labelled: bool) -> pd.DataFrame:
    """The columns of a listfile, checked; without `labelled` the labels are left out, unread."""
    table = read_table(path, ("stay",), empty=True)
    stays = table.factorized("stay")
    columns: dict[str, Any] = {"stay": stays[1][stays[0]]}
    table.check_once("stay", "stay")
    for name in map(str, table.data):
        if name == "period_length":
            columns[name] = table.numbers(name)
        elif name != "stay" and labelled:
            columns[name] = table.labels(name)
    return pd.DataFrame(columns)


def _series(
    folder: Path, listed: pd.DataFrame, window: float, duplicates: str, counts: dict[str, int]
) -> tuple[tuple[Indices, Floats, NDArray[np.int32], Floats], NDArray[np.str_]]:
    places = zip(listed["stay"].astype(str), listed["file"], strict=True)
    files = _contents((stay, folder / where / stay) for stay, where in places)
    names, lengths, text = joined(folder, files, ",".join(_COLUMNS).encode())
    ids = np.array([name.removesuffix("_timeseries") for name in names])
    texts = {variable.name: "category" for variable in VARIABLES if variable.categories}
    kinds = dict.fromkeys(_COLUMNS, "float64") | texts
    stay = np.repeat(np.arange(len(names)), lengths)
    files_of_rows = np.array([f"{folder}, {name}.csv" for name in names], dtype=object)[stay]
    try:
        table = pd.read_csv(
            text, header=None, names=_COLUMNS, dtype=kinds, keep_default_na=False, na_values=[""],
            skip_blank_lines=False,
        )  # fmt: skip
    except ValueError as error:
        line, entry = no_number(text, _COLUMNS, [name for name in _COLUMNS if name not in texts])
        problem = f"{files_of_rows[line]}: {entry}, a value is no number"
        raise SeqattnError(f"{problem}; mend it or leave it empty") from error
    values = np.stack([_numbers(table[variable.name], variable, files_of_rows) for variable in VARIABLES], axis=1)
    row, channel = np.nonzero(~np.isnan(values))
    hours = table["Hours"].to_numpy(np.float64)
    hours = np.where((hours > -_ROUNDING) & (hours < window + _ROUNDING), np.clip(hours, 0, window), hours)
    events = sort_events(
        stay[row], hours[row], channel, values[row, channel], ids=ids, names=_COLUMNS[1:], window=window,
        duplicates=duplicates, counts=counts,
    )  # fmt: skip
    return events, ids


def _contents(files: Iterator[tuple[str, Path]]) -> Iterator[tuple[str, bytes]]:
    for name, path in files:
        try:
            yield name, path.read_bytes()
        except OSError as error:
            problem = f"{path}, which the listfile names, cannot be read"
            raise SeqattnError(f"{problem}; make the task's data anew") from error


def _numbers(column: pd.Series, variable: Variable, files: NDArray[np.object_]) -> NDArray[np.float64]:
    """(rows,) numbers, NaN where empty; files: (rows,) the file of each, for errors."""
    if not variable.categories:
        return column.to_numpy(np.float64)
    codes, texts = pd.factorize(column)
    numbers = np.full(len(texts) + 1, np.nan)  # the last for code -1: missing
    for code, text in enumerate(map(str, texts)):
        try:
            numbers[code] = float(text) if _is_number(text) else variable.number(text)
        except SeqattnError as error:
            raise SeqattnError(f"{files[np.flatnonzero(codes == code)[0]]}: {error}") from error
    return numbers[codes]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
