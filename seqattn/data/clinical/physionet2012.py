"""PhysioNet Challenge 2012: 12,000 ICU stays, their first 48 hours, 37 variables at irregular times.

https://physionet.org/content/challenge-2012/1.0.0/
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.archives import Arrays, archive_or_folder, cached, data_folder, joined, text_files
from seqattn.data.clinical.events import add, sort_events
from seqattn.data.clinical.partition import hold_out, random_splits
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.schema import Variable
from seqattn.data.clinical.tables import Table
from seqattn.errors import SeqattnError, nearest

SETS = ("a", "b", "c")
LABELS = ("mortality", "length_of_stay")
SPLITS = ("challenge", "random", "strats")
WINDOW = 48.0
_HEADER = b"Time,Parameter,Value"
_STATIC = ("RecordID", "Age", "Gender", "Height", "ICUType")
_CODES = {"Gender": (0, 1), "ICUType": (1, 2, 3, 4)}  # negative: not known
_OUTCOMES = ("RecordID", "SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")

# ranges are what a living patient and the unit allow; laboratory values with long tails are scaled by the logarithm
_RANGES: dict[str, tuple[float, float]] = {
    "Albumin": (0.5, 8), "Cholesterol": (10, 1000), "DiasABP": (5, 250), "FiO2": (0.21, 1), "GCS": (3, 15),
    "HCO3": (2, 70), "HCT": (5, 80), "HR": (5, 320), "K": (1, 15), "MAP": (5, 320), "MechVent": (0, 1),
    "Mg": (0.2, 15), "NIDiasABP": (5, 250), "NIMAP": (5, 320), "NISysABP": (20, 350), "Na": (85, 200),
    "RespRate": (0, 120), "SaO2": (10, 100), "SysABP": (20, 350), "Temp": (24, 45), "Weight": (15, 400), "pH": (6.3, 8),
}  # fmt: skip
_LOG_RANGES: dict[str, tuple[float, float]] = {
    "ALP": (1, 10_000), "ALT": (1, 50_000), "AST": (1, 50_000), "BUN": (1, 300), "Bilirubin": (0, 100),
    "Creatinine": (0.1, 40), "Glucose": (5, 2500), "Lactate": (0.1, 50), "PaCO2": (5, 250), "PaO2": (10, 800),
    "Platelets": (1, 3000), "TroponinI": (0, 500), "TroponinT": (0, 100), "Urine": (0, 5000), "WBC": (0, 1000),
}  # fmt: skip
VARIABLES = tuple(
    sorted(
        [Variable(name, low=low, high=high) for name, (low, high) in _RANGES.items()]
        + [Variable(name, low=low, high=high, scale="log") for name, (low, high) in _LOG_RANGES.items()],
        key=lambda variable: variable.name,
    )
)
STATIC_VARIABLES = (
    Variable("Age", low=10, high=120),
    Variable("Gender", "category", categories={"female": 0, "male": 1}),
    Variable("Height", low=100, high=230),
    *(Variable(f"ICUType {number}", low=0, high=1) for number in (1, 2, 3, 4)),
)


def read_physionet2012(
    data_dir: str | Path | None = None,
    *,
    label: Literal["mortality", "length_of_stay"] = "mortality",
    split: Literal["challenge", "random", "strats"] = "challenge",
    seed: int = 0,
    duplicates: str = "last",
    labelled: bool = True,
) -> Stays:
    """The stays of the challenge, from set-{a,b,c} as archives or folders beside Outcomes-{a,b,c}.txt.

    label: "mortality" is In-hospital_death; "length_of_stay" is whether the stay lasted more than 3 days, and leaves
        out the stays whose length is unknown (-1).
    split: "challenge" trains on set a, validates on b and tests on c; "random" is 80/10/10 of all stays, stratified,
        drawn from `seed`; "strats" tests on set a and holds a fifth of b and c out for validation.
    duplicates: for values of one stay, time and variable, see `sort_events`.
    labelled: False reads the sets that are there, without outcomes and splits, for prediction.

    37 series variables (Weight among them) and 7 static values (the ICU's type one-hot); a negative value is missing.
    Rows without a parameter's name, stays without a series, and outcomes without a record are left out and counted.
    Every stay is a subject.

    Raises SeqattnError for options out of range, files that are missing or damaged, rows that cannot be read, unknown
    parameters, genders and types of the ICU, records without an outcome or with two, and outcomes that are no numbers.
    """
    for value, known in ((label, LABELS), (split, SPLITS)):
        if value not in known:
            raise SeqattnError(f"{value!r} is none of {', '.join(known)}{nearest(value, known)}")
    folder = data_folder("physionet2012", ("set-?.tar*", "set-?"), data_dir)
    sets = [name for name in SETS if labelled or any(folder.glob(f"set-{name}*"))]
    parts = [cached(archive_or_folder(folder, f"set-{name}"), parse_physionet2012) for name in sets]
    counts: dict[str, int] = {}
    for name, part in zip(sets, parts, strict=True):
        _check_rows(part, archive_or_folder(folder, f"set-{name}"))
    labels = None
    if labelled:
        files = [folder / f"Outcomes-{name}.txt" for name in sets]
        labels = [_labels(part["record"], file, label, counts) for part, file in zip(parts, files, strict=True)]
    stays = _build(parts, labels, label, duplicates, counts)
    if split == "random" and labelled:
        return replace(stays, splits=random_splits(stays, seed))
    return replace(stays, splits=_strats_splits(stays, seed)) if split == "strats" and labelled else stays


def parse_physionet2012(path: Path) -> Arrays:
    """The rows of one set: record (stays,), and per row stay, minute, parameter and value; names of the parameters.

    A parameter without a name has number 0, the name "".
    """
    names, lengths, text = joined(path, text_files(path, ".txt"), _HEADER)
    columns = ["time", "parameter", "value"]
    table = pd.read_csv(text, header=None, names=columns, dtype=str, skip_blank_lines=False, keep_default_na=False)
    stay = np.repeat(np.arange(len(names), dtype=np.int32), lengths)
    values = pd.to_numeric(table["value"], errors="coerce").to_numpy(np.float32)
    codes, times = pd.factorize(table["time"])
    minutes = np.array([_minutes(str(time)) for time in times], dtype=np.int16)[codes]
    bad = np.flatnonzero((minutes < 0) | (np.isnan(values) & (table["value"] != "").to_numpy()))
    if len(bad):
        line = table.iloc[int(bad[0])]
        where = f"{path}, {names[stay[bad[0]]]}.txt"
        problem = f"the row {','.join(map(str, line))[:60]!r} is no time HH:MM, parameter and number"
        raise SeqattnError(f"{where}: {problem}; mend or remove it")
    parameter, found = pd.factorize(table["parameter"], sort=True)
    known = np.array(["", *[str(name) for name in found if name]])
    number = {str(name): place for place, name in enumerate(known)}
    parameter = np.array([number[str(name)] for name in found], dtype=np.int16)[parameter]
    return {
        "record": np.array(names), "stay": stay, "minute": minutes, "parameter": parameter, "value": values,
        "names": known,
    }  # fmt: skip


def _minutes(time: str) -> int:
    hours, colon, minutes = time.partition(":")
    if not (colon and hours.isdecimal() and minutes.isdecimal() and int(minutes) < 60 and int(hours) < 500):
        return -1
    return 60 * int(hours) + int(minutes)


def _check_rows(part: Arrays, path: Path) -> None:
    """Raise SeqattnError, naming the file, for an unknown parameter, gender or type of the ICU."""
    known = [*_STATIC, *(variable.name for variable in VARIABLES)]
    for number, name in enumerate(part["names"].tolist()):
        if name and name not in known:
            advice = nearest(name, known) or f"; known are {', '.join(known)}"
            where = _file_of(part, np.flatnonzero(part["parameter"] == number)[0], path)
            raise SeqattnError(f"{where}: parameter {name!r} is not one of the challenge{advice}")
        if name in _CODES:
            rows = np.flatnonzero((part["parameter"] == number) & (part["value"] >= 0))
            for row in rows[~np.isin(part["value"][rows], _CODES[name])][:1]:
                problem = f"{name} is {part['value'][row]:g}; it must be one of {', '.join(map(str, _CODES[name]))}"
                raise SeqattnError(f"{_file_of(part, row, path)}: {problem}, or -1 where it is not known")


def _file_of(part: Arrays, row: int, path: Path) -> str:
    return f"{path}, {part['record'][part['stay'][row]]}.txt"


def _outcomes(path: Path) -> Table:
    try:
        table = Table(pd.read_csv(path, skipinitialspace=True), path)
    except (OSError, ValueError) as error:
        raise SeqattnError(f"{path} cannot be read; put the challenge's file of outcomes there") from error
    missing = [name for name in _OUTCOMES if name not in table.data]
    if missing:
        raise SeqattnError(f"{path} has no column {missing[0]!r}{nearest(missing[0], table.data) or '; add it'}")
    table.check_once("RecordID", "record")
    return table


def _labels(records: NDArray[np.str_], path: Path, label: str, counts: dict[str, int]) -> NDArray[np.float32]:
    """(records,) the label of each record of one set, NaN where the length of stay is not known."""
    table = _outcomes(path)
    names = table.whole_numbers("RecordID").astype(np.str_)
    absent = np.setdiff1d(records, names)
    if len(absent):
        problem = f"record {absent[0]} has no row in {path}, nor have {len(absent) - 1} more"
        raise SeqattnError(f"{problem}; add them")
    add(counts, "outcomes without a record left out", len(names) - len(records))
    if label == "mortality":
        values = table.labels("In-hospital_death")
    else:
        days = table.numbers("Length_of_stay")
        values = np.where(np.isnan(days) | (days < 0), np.nan, days > 3)
    order = np.argsort(names)
    return values[order[np.searchsorted(names[order], records)]].astype(np.float32)


def _build(
    parts: list[Arrays], outcomes: list[NDArray[np.float32]] | None, label: str, duplicates: str, counts: dict[str, int]
) -> Stays:
    records = np.concatenate([part["record"] for part in parts])
    sizes = [len(part["record"]) for part in parts]
    unique, times = np.unique(records, return_counts=True)
    if (times > 1).any():
        raise SeqattnError(f"record {unique[times > 1][0]} is in two of the sets; remove it from one")
    (stay, minutes, channel, values), static = _columns(parts, np.cumsum([0, *sizes]), counts)
    drawn = channel != [variable.name for variable in VARIABLES].index("Weight")
    kept = np.bincount(stay[drawn], minlength=len(records)) > 0
    add(counts, "stays without series left out", (~kept).sum())
    labels = np.full(len(records), np.nan, np.float32)
    splits = np.full(len(records), "", dtype="U5")
    if outcomes is not None:
        labels, splits = np.concatenate(outcomes), np.repeat(["train", "valid", "test"], sizes)
        add(counts, "stays of unknown length left out", (kept & np.isnan(labels)).sum())
        kept &= ~np.isnan(labels)
    events = sort_events(
        stay, minutes / 60, channel, values, ids=records, names=[variable.name for variable in VARIABLES],
        window=WINDOW, duplicates=duplicates, counts=counts,
    )  # fmt: skip
    stays = Stays(
        records, records, splits, VARIABLES, WINDOW, *events, label_names=(label,), labels=labels[:, None],
        static_variables=STATIC_VARIABLES, static=static, counts=counts,
    )  # fmt: skip
    return stays.subset(np.flatnonzero(kept))


def _columns(
    parts: list[Arrays], offsets: NDArray[np.int64], counts: dict[str, int]
) -> tuple[tuple[NDArray, NDArray, NDArray, NDArray], NDArray[np.float32]]:
    channels = {variable.name: number for number, variable in enumerate(VARIABLES)}
    fields = {name: -2 - number for number, name in enumerate(_STATIC)}  # static rows: -2, -3, ...
    static = np.full((int(offsets[-1]), len(_STATIC)), np.nan, np.float32)
    columns = []
    for part, offset in zip(parts, offsets, strict=False):
        add(counts, "rows without a parameter's name left out", (part["parameter"] == 0).sum())
        numbers = np.array([(fields | channels).get(str(name), -1) for name in part["names"]])
        channel = numbers[part["parameter"]]
        negative = (part["value"] < 0) & (channel != -1)
        add(counts, "negative values taken as missing", negative.sum())
        finite = np.isfinite(part["value"])
        add(counts, "rows without a finite value left out", (~finite & (channel != -1)).sum())
        usable = ~negative & finite
        fixed = usable & (channel <= -2)
        static[part["stay"][fixed] + offset, -2 - channel[fixed]] = part["value"][fixed]
        chosen = usable & (channel >= 0)
        columns.append((part["stay"][chosen] + offset, part["minute"][chosen], channel[chosen], part["value"][chosen]))
    stay, minutes, channel, values = (np.concatenate(column) for column in zip(*columns, strict=True))
    _, age, gender, height, unit = static.T
    one_hot = [np.where(np.isnan(unit), np.nan, unit == number) for number in (1, 2, 3, 4)]
    return (stay, minutes, channel, values), np.stack([age, gender, height, *one_hot], axis=1).astype(np.float32)


def _strats_splits(stays: Stays, seed: int) -> NDArray[np.str_]:
    splits = np.where(stays.splits == "train", "test", "train").astype("U5")
    _, held = hold_out(stays, np.flatnonzero(splits == "train"), 0.2, seed)
    splits[held] = "valid"
    return splits
