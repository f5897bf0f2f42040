"""Stays as the files of a MEDS folder."""

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn import __version__
from seqattn.data.clinical.code_map import write_code_map
from seqattn.data.clinical.meds import NOTE_CODE
from seqattn.data.clinical.records import Stays
from seqattn.errors import SeqattnError
from seqattn.optional import require

SUBJECT_CODE = "SUBJECT"
_SPLITS = {"train": "train", "valid": "tuning", "test": "held_out"}
_EPOCH = np.datetime64("2000-01-01", "us")  # windows of hours have no date: this one is invented
_APART = np.timedelta64(366, "D")  # between the stays of one subject


def write_meds(stays: Stays, folder: str | Path) -> None:
    """Write stays, in their variables' units, as a MEDS folder that `read_meds` reads: whole or not at all.

    Stay k of a subject begins k years after 2000-01-01, and is predicted at its window's end. Where a subject has
    several stays, static values are events at the window's start. Notes are text_value of the code NOTE; a code map
    keeps the variables' ranges. Subjects are numbered where their names are not numbers. A subject without events,
    static values and notes has one event without a time, of the code SUBJECT, so that data/ names everyone.

    Raises SeqattnError where the folder exists or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise SeqattnError(f"{folder} exists already; give a new folder")
    files = meds_files(stays)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            for name, content in files.items():
                path = Path(temporary) / "meds" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            os.replace(Path(temporary) / "meds", folder)
    except OSError as error:
        raise SeqattnError(f"{folder} cannot be written ({error.strerror}); check the disk and permissions") from error


def meds_files(stays: Stays) -> dict[str, bytes]:
    """The files of the folder by their path in it."""
    numbers, order = _subject_numbers(stays)
    starts = _EPOCH + order * _APART
    once = len(np.unique(stays.subjects)) == len(stays)
    variables = stays.variables + stays.static_variables
    events = _events(stays, numbers, starts, once)
    files = {
        "data/0.parquet": _parquet(events),
        "metadata/codes.parquet": _parquet(_codes([variable.name for variable in variables])),
        "metadata/dataset.json": json.dumps({"dataset_name": "seqattn", "meds_version": "0.4.0",
                                             "etl_name": "seqattn", "etl_version": __version__}).encode(),
        "code_map.yaml": write_code_map(
            {variable.name: variable for variable in variables}, NOTE_CODE if stays.notes is not None else None
        ).encode(),
    }  # fmt: skip
    if (stays.splits != "").any():
        named = pd.DataFrame({"subject_id": numbers, "split": [_SPLITS.get(str(name), "") for name in stays.splits]})
        files["metadata/subject_splits.parquet"] = _parquet(named[named["split"] != ""].drop_duplicates())
    end = starts + np.timedelta64(round(stays.window * 3600 * 10**6), "us")
    for column, name in enumerate(stays.label_names):
        known = ~np.isnan(stays.labels[:, column])
        label = {"subject_id": numbers[known], "prediction_time": end[known]}
        values = stays.labels[known, column] > 0
        files[f"labels/{_file_name(name)}.parquet"] = _parquet(pd.DataFrame({**label, "boolean_value": values}))
    return files


def _events(stays: Stays, numbers: NDArray[np.int64], starts: NDArray[np.datetime64], once: bool) -> pd.DataFrame:
    names = np.array([variable.name for variable in stays.variables], dtype=object)
    owner = np.repeat(np.arange(len(stays)), np.diff(stays.starts))
    parts = [_rows(numbers[owner], _time(starts[owner], stays.times), names[stays.channel], stays.values)]
    stay, column = np.nonzero(np.isfinite(stays.static))
    static_names = np.array([variable.name for variable in stays.static_variables], dtype=object)
    time = np.full(len(stay), np.datetime64("NaT"), "datetime64[us]") if once else starts[stay]
    parts.append(_rows(numbers[stay], time, static_names[column], stays.static[stay, column]))
    if stays.notes is not None:
        if not stays.notes.texts and len(stays.notes.times):
            raise SeqattnError("the notes have no texts, only vectors; MEDS holds texts: leave the notes out")
        owner = np.repeat(np.arange(len(stays)), np.diff(stays.notes.starts))
        hours = np.maximum(stays.notes.times, 0)  # of before the window: a reader looks at no earlier time
        notes = _rows(numbers[owner], _time(starts[owner], hours), NOTE_CODE, np.nan)
        parts.append(notes.assign(text_value=np.array(stays.notes.texts, dtype=object)))
    alone = np.setdiff1d(numbers, np.concatenate([part["subject_id"].to_numpy(np.int64) for part in parts]))
    parts.append(_rows(alone, np.full(len(alone), np.datetime64("NaT"), "datetime64[us]"), SUBJECT_CODE, np.nan))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return table.sort_values(["subject_id", "time"], kind="stable", na_position="first", ignore_index=True)


def _rows(subject: Any, time: Any, code: Any, value: Any) -> pd.DataFrame:
    table = pd.DataFrame({"subject_id": subject, "time": time, "code": code, "numeric_value": np.float32(value)})
    return table.assign(text_value=None)


def _time(starts: NDArray[np.datetime64], hours: NDArray[np.floating]) -> NDArray[np.datetime64]:
    return starts + np.rint(hours.astype(np.float64) * 3.6e9).astype("timedelta64[us]")


def _codes(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"code": names, "description": names})


def _subject_numbers(stays: Stays) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each stay's subject, and of the stay among those of its subject."""
    names, number = np.unique(stays.subjects, return_inverse=True)
    decimal = all(name.isdecimal() and len(name) < 19 for name in names.tolist())
    if decimal and len(np.unique(names.astype(np.int64))) == len(names):  # 7 and 07 are two subjects
        number_of = names.astype(np.int64)
    else:
        number_of = np.arange(1, len(names) + 1)
    order = pd.Series(number).groupby(number).cumcount().to_numpy(np.int64)
    return number_of[number], order


def _file_name(label: str) -> str:
    return label.replace("/", "_").replace("\\", "_")


def _parquet(table: pd.DataFrame) -> bytes:
    pyarrow = require("pyarrow")
    import pyarrow.parquet as parquet

    kinds = {
        "subject_id": pyarrow.int64(), "time": pyarrow.timestamp("us"), "prediction_time": pyarrow.timestamp("us"),
        "code": pyarrow.string(), "numeric_value": pyarrow.float32(), "text_value": pyarrow.large_string(),
        "boolean_value": pyarrow.bool_(), "split": pyarrow.string(), "description": pyarrow.string(),
    }  # fmt: skip
    schema = pyarrow.schema([(name, kinds[name]) for name in table.columns])
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pandas(table, schema=schema, preserve_index=False), buffer)
    return buffer.getvalue()
