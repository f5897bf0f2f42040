"""PhysioNet Challenge 2019: early prediction of sepsis from hourly rows of ICU patients.

https://physionet.org/content/challenge-2019/1.0.0/
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.archives import Arrays, archive_or_folder, cached, data_folder, joined, no_number, text_files
from seqattn.data.clinical.events import add, sort_events
from seqattn.data.clinical.partition import random_splits
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.schema import Variable
from seqattn.errors import SeqattnError

SETS = ("training_setA", "training_setB", "training")
_RANGES: dict[str, tuple[float, float]] = {
    "HR": (5, 320), "O2Sat": (10, 100), "Temp": (24, 45), "SBP": (20, 350), "MAP": (5, 320), "DBP": (5, 250),
    "Resp": (0, 120), "EtCO2": (0, 150), "BaseExcess": (-50, 50), "HCO3": (2, 70), "FiO2": (0.21, 1), "pH": (6.3, 8),
    "PaCO2": (5, 250), "SaO2": (10, 100), "AST": (1, 50_000), "BUN": (1, 300), "Alkalinephos": (1, 10_000),
    "Calcium": (1, 30), "Chloride": (20, 200), "Creatinine": (0.1, 60), "Bilirubin_direct": (0, 100),
    "Glucose": (5, 2500), "Lactate": (0.1, 50), "Magnesium": (0.2, 15), "Phosphate": (0.2, 25), "Potassium": (1, 15),
    "Bilirubin_total": (0, 100), "TroponinI": (0, 500), "Hct": (5, 80), "Hgb": (1, 30), "PTT": (5, 300),
    "WBC": (0, 1000), "Fibrinogen": (20, 2000), "Platelets": (1, 3000),
}  # fmt: skip
_LOGARITHMIC = {
    "AST", "BUN", "Alkalinephos", "Creatinine", "Bilirubin_direct", "Glucose", "Lactate", "Bilirubin_total",
    "TroponinI", "PTT", "WBC", "Fibrinogen", "Platelets",
}  # fmt: skip
VARIABLES = tuple(
    Variable(name, low=low, high=high, scale="log" if name in _LOGARITHMIC else "linear")
    for name, (low, high) in _RANGES.items()
)
STATIC_VARIABLES = (
    Variable("Age", low=10, high=120),
    Variable("Gender", "category", categories={"female": 0, "male": 1}),
    Variable("Unit1", low=0, high=1),
    Variable("Unit2", low=0, high=1),
    Variable("HospAdmTime", low=-1000, high=24),  # hours from ICU to hospital admission
)
_COLUMNS = [variable.name for variable in VARIABLES + STATIC_VARIABLES] + ["ICULOS", "SepsisLabel"]


def read_physionet2019(
    data_dir: str | Path | None = None,
    *,
    cut: Literal["landmark", "label"] = "landmark",
    hour: int = 12,
    window: int | None = None,
    seed: int = 0,
    labelled: bool = True,
) -> Stays:
    """One sample a patient, of training_setA (and training_setB), as archives or folders of .psv files.

    SepsisLabel is 1 from 6 hours before the onset of sepsis on; nothing later than the cut is given to a model:
        cut="landmark" cuts all patients after row `hour` of their record; the label is whether SepsisLabel becomes 1 in
            a later row. Patients with fewer rows, and those whose label is 1 by then, are left out and counted. All
            patients have equally many rows, so the length of a record tells nothing.
        cut="label" keeps every patient: one with sepsis is cut after the first row of label 1, at least 6 hours before
            the onset or at the record's start, others after their last row; the label is whether there is sepsis at
            all. This is the patient-level task of the literature; the length of a record does tell something.
    window: hours before the cut, default `hour` for "landmark" and 48 for "label"; earlier rows are counted.
    seed: draws the split, 80/10/10 by patient, stratified. labelled: False cuts every record after its last row.

    A row's time is that of its hour's beginning. 34 variables and 5 static values.

    Raises SeqattnError for options out of range, files that are missing or damaged, and rows that cannot be read.
    """
    if cut not in ("landmark", "label"):
        raise SeqattnError(f"cut is {cut!r}; it must be 'landmark' or 'label'")
    window = window if window is not None else hour if cut == "landmark" else 48
    if hour < 1 or window < 1:
        raise SeqattnError(f"hour is {hour} and window {window}; both must be at least 1")
    folder = data_folder("physionet2019", tuple(f"{name}*" for name in SETS), data_dir)
    present = [name for name in SETS if any(folder.glob(f"{name}.tar*")) or (folder / name).is_dir()]
    parts = [cached(archive_or_folder(folder, name), parse_physionet2019) for name in present]
    offsets = np.cumsum([0, *[len(part["patient"]) for part in parts]])
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["stay"] = np.concatenate([part["stay"] + offset for part, offset in zip(parts, offsets, strict=False)])
    counts: dict[str, int] = {}
    rows, first = columns["length"], columns["first"]  # first: the row of the first label 1, -1 without
    sepsis = first >= 0
    kept, last = np.ones(len(rows), dtype=bool), rows - 1
    if labelled and cut == "landmark":
        early = sepsis & (first < hour)
        kept = (rows >= hour) & ~early
        add(counts, f"patients labelled by hour {hour} left out", early.sum())
        add(counts, f"patients with fewer than {hour} rows left out", ((rows < hour) & ~early).sum())
        last = np.full(len(rows), hour - 1)
    elif labelled:
        last = np.where(sepsis, first, rows - 1)
    stays = _build(columns, last, window, counts)
    if not labelled:
        return stays
    stays = replace(stays, labels=sepsis.astype(np.float32)[:, None]).subset(np.flatnonzero(kept))
    return replace(stays, splits=random_splits(stays, seed))


def parse_physionet2019(path: Path) -> Arrays:
    """Per patient: name, rows, row of the first label 1 (-1 without), static values; per value: stay, row, column."""
    names, lengths, text = joined(path, text_files(path, ".psv"), "|".join(_COLUMNS).encode(), b"|")
    try:
        table = pd.read_csv(text, sep="|", header=None, names=_COLUMNS, dtype=np.float32, skip_blank_lines=False)
    except ValueError as error:
        row, entry = no_number(text, _COLUMNS, _COLUMNS, "|")
        name = np.repeat(names, lengths)[row]
        raise SeqattnError(f"{path}, {name}.psv: {entry}, a value is no number; mend it or write NaN") from error
    stay = np.repeat(np.arange(len(names), dtype=np.int32), lengths)
    for strange in np.flatnonzero(~table["SepsisLabel"].isin((0, 1)).to_numpy())[:1]:
        problem = f"SepsisLabel is {table['SepsisLabel'].iloc[strange]:g}"
        raise SeqattnError(f"{path}, {names[stay[strange]]}.psv: {problem}; it must be 0 or 1")
    starts = np.concatenate([[0], np.cumsum(lengths)])
    row = (np.arange(len(stay)) - starts[:-1][stay]).astype(np.int32)
    positive = np.flatnonzero(table["SepsisLabel"].to_numpy() == 1)
    first = np.full(len(names), -1, dtype=np.int64)
    first[stay[positive[::-1]]] = row[positive[::-1]]  # of several, the earliest is written last
    values = table[[variable.name for variable in VARIABLES]].to_numpy()
    place, column = np.nonzero(~np.isnan(values))
    static = table[[variable.name for variable in STATIC_VARIABLES]].to_numpy()
    return {
        "patient": np.array(names), "length": lengths, "first": first, "static": _first_known(static, stay, len(names)),
        "stay": stay[place], "row": row[place], "column": column.astype(np.uint8), "value": values[place, column],
    }  # fmt: skip


def _first_known(static: NDArray[np.float32], stay: NDArray[np.int32], stays: int) -> NDArray[np.float32]:
    known = np.full((stays, static.shape[1]), np.nan, np.float32)
    for column in range(static.shape[1]):
        rows = np.flatnonzero(~np.isnan(static[:, column]))[::-1]
        known[stay[rows], column] = static[rows, column]
    return known


def _build(columns: Arrays, last: NDArray[np.int64], window: int, counts: dict[str, int]) -> Stays:
    patients = columns["patient"]
    end = last[columns["stay"]]
    usable = columns["row"] <= end
    hours = (columns["row"] - (end + 1 - window))[usable]
    earlier = hours < 0
    add(counts, f"values more than {window} hours before the cut left out", earlier.sum())
    stay, column, value = (columns[name][usable][~earlier] for name in ("stay", "column", "value"))
    names = [variable.name for variable in VARIABLES]
    events = sort_events(
        stay, hours[~earlier], column, value, ids=patients, names=names, window=float(window), counts=counts
    )
    return Stays(
        patients, patients, np.full(len(patients), ""), VARIABLES, float(window), *events, label_names=("sepsis",),
        labels=np.full((len(patients), 1), np.nan, np.float32), static_variables=STATIC_VARIABLES,
        static=columns["static"], counts=counts,
    )  # fmt: skip
