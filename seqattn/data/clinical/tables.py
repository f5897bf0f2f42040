"""Tables of a folder, parquet or CSV: their columns checked, ids, times and numbers parsed."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.errors import SeqattnError, nearest
from seqattn.optional import require

_SUFFIXES = (".parquet", ".csv", ".csv.gz")
_KEYS = ("id", "subject", "variable", "category", "split")  # text, however it looks
_MISSING = ("", "nan", "NaN")  # in a CSV; of keys and texts only "": None and NA may be names
_NO_NUMBER = {"nan", "na", "n/a", "<na>", "null", "none"}  # what other programs write for a missing number
_CLOCK = re.compile(r"\s*\d+:\d\d(:\d\d(\.\d+)?)?\s*")


@dataclass(frozen=True, eq=False)
class Table:
    """One table and the file it came from."""

    data: pd.DataFrame
    path: Path

    def __len__(self) -> int:
        return len(self.data)

    def fault(self, row: int | np.integer, problem: str) -> SeqattnError:
        """The error for a row, counted from 0, to be raised by the caller."""
        line = f"line {int(row) + 2}" if self.path.suffix != ".parquet" else f"row {int(row) + 1}"
        return SeqattnError(f"{self.path}, {line}: {problem}")

    def factorized(self, column: str) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
        """The number of each row's text in a column, and the texts, sorted; a missing text is an error."""
        self._check_given(column)
        codes, texts = pd.factorize(self.data[column], sort=False)
        names = np.array([str(text) for text in texts], dtype=np.str_)
        unique, place = np.unique(names, return_inverse=True)
        return place.astype(np.int64)[codes], unique

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column as numbers, durations as hours, NaN where empty or NA; raises SeqattnError at any other text."""
        given = self.data[column]
        if pd.api.types.is_timedelta64_dtype(given):
            return (given / pd.Timedelta(hours=1)).to_numpy(np.float64)
        values = pd.to_numeric(given, errors="coerce").to_numpy(np.float64)
        strange = self.texts(column, values)
        if len(strange):
            text = str(given.iloc[int(strange[0])])[:40]
            raise self.fault(strange[0], f"{column} is {text!r}, not a number; mend it or leave it empty")
        return values

    def is_numeric(self, column: str) -> bool:
        """Whether `numbers` takes a column, and finds a number in it or nothing at all."""
        if not self.data[column].notna().any():
            return True
        values = pd.to_numeric(self.data[column], errors="coerce").to_numpy(np.float64)
        return not np.isnan(values).all() and not len(self.texts(column, values))

    def texts(self, column: str, values: NDArray[np.float64]) -> NDArray[np.intp]:
        """The rows of texts that are neither numbers nor mean that one is missing."""
        given = self.data[column]
        rows = np.flatnonzero(np.isnan(values) & given.notna().to_numpy())
        missing = given.iloc[rows].astype(str).str.strip().str.lower().isin(_NO_NUMBER).to_numpy(bool)
        return rows[~missing]

    def whole_numbers(self, column: str) -> NDArray[np.int64]:
        """A column of whole numbers; raises SeqattnError at the first row that has none."""
        given = self.data[column]
        self._check_given(column)
        numbers = pd.to_numeric(given, errors="coerce")
        if not pd.api.types.is_integer_dtype(numbers):
            values = numbers.to_numpy(np.float64)
            strange = np.flatnonzero(~((values == np.floor(values)) & (np.abs(values) < 2**63)))
            if len(strange):
                text = str(given.iloc[int(strange[0])])[:40]
                raise self.fault(strange[0], f"{column} is {text!r}, not a whole number; mend it")
        return numbers.to_numpy(np.int64)

    def labels(self, column: str) -> NDArray[np.float64]:
        """A column of 0 and 1; raises SeqattnError at the first row of anything else."""
        values = pd.to_numeric(self.data[column], errors="coerce").to_numpy(np.float64)
        wrong = np.flatnonzero(~np.isin(values, (0, 1)))
        if len(wrong):
            given = str(self.data[column].iloc[int(wrong[0])])[:40]
            raise self.fault(wrong[0], f"label {column!r} is {given}; it must be 0 or 1")
        return values

    def check_once(self, column: str, what: str) -> None:
        """Raise SeqattnError at the first row whose `column`, a `what`, another row has too."""
        twice = np.flatnonzero(self.data[column].duplicated().to_numpy())
        if len(twice):
            name = str(self.data[column].iloc[int(twice[0])])[:60]
            raise self.fault(twice[0], f"{what} {name} is there twice; give each {what} one row")

    def _check_given(self, column: str) -> None:
        missing = np.flatnonzero(self.data[column].isna().to_numpy())
        if len(missing):
            raise self.fault(missing[0], f"the {column} is missing; give one")

    def is_time(self, column: str) -> bool:
        """Whether a column holds timestamps rather than numbers or durations.

        Raises SeqattnError for gaps, for numbers among timestamps, and for times of day, which have no date.
        """
        self._check_given(column)
        given = self.data[column]
        if pd.api.types.is_datetime64_any_dtype(given):
            return True
        if pd.api.types.is_timedelta64_dtype(given):
            return False
        numeric = pd.to_numeric(given, errors="coerce").notna().to_numpy()
        if numeric.all():
            return False
        if numeric.any():
            odd = int(np.flatnonzero(numeric != numeric[0])[0])
            problem = f"{column} is {str(given.iloc[odd])[:40]!r} but {str(given.iloc[0])[:40]!r} in the first row"
            raise self.fault(odd, f"{problem}; give hours or timestamps, not both")
        if _CLOCK.fullmatch(str(given.iloc[0])):
            problem = f"{column} is {str(given.iloc[0])[:40]!r}, which has no date"
            raise self.fault(0, f"{problem}; give hours such as 17.75, or timestamps such as 2024-05-31 17:45:00")
        return True

    def timestamps(self, column: str, *, gaps: bool = False) -> NDArray[np.datetime64]:
        """A column of timestamps, without time zone (those with one in UTC), to the microsecond; NaT in its gaps.

        Raises SeqattnError for a gap unless `gaps`, and for what is no timestamp.
        """
        given = self.data[column]
        if not gaps:
            self._check_given(column)
        if not pd.api.types.is_datetime64_any_dtype(given):
            number = pd.api.types.is_numeric_dtype(given)
            parsed = pd.to_datetime(given.astype(str) if number else given, format="ISO8601", errors="coerce", utc=True)
            strange = np.flatnonzero((parsed.isna() | number).to_numpy() & given.notna().to_numpy())
            if len(strange):
                text = str(given.iloc[int(strange[0])])[:40]
                problem = f"{column} is {text!r}, no time such as 2024-05-31 17:45:00; mend it"
                raise self.fault(strange[0], problem)
            given = parsed
        if given.dt.tz is not None:
            given = given.dt.tz_convert("UTC").dt.tz_localize(None)
        return given.to_numpy("datetime64[us]")


def find_table(folder: Path, name: str) -> Path | None:
    """folder/NAME.parquet, NAME.csv or NAME.csv.gz; None without any, and raises SeqattnError where there are two."""
    found = [path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise SeqattnError(f"{folder} has both {found[0].name} and {found[1].name}; remove the one that is not meant")
    return found[0] if found else None


def read_table(path: Path, needed: Sequence[str], others: Iterable[str] | None = None, *, empty: bool = False) -> Table:
    """A table that has the columns `needed` and, unless `others` is None, none but those and `others`.

    Raises SeqattnError for a file that cannot be read, a table without rows unless `empty`, and wrong columns, with the
    nearest name.
    """
    data = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    columns = [str(column) for column in data.columns]
    data.columns = pd.Index(columns)
    for name in needed:
        if name not in columns:
            advice = nearest(name, [column for column in columns if column not in needed])
            given = ", ".join(columns[:10])
            raise SeqattnError(f"{path} has no column {name!r} (it has {given}){advice or '; add or rename it'}")
    strange = [name for name in columns if others is not None and name not in {*needed, *others}]
    if strange:
        known = [*needed, *(others or ())]
        advice = nearest(strange[0], known) or f"; known are {', '.join(known)}"
        raise SeqattnError(f"{path} has an unknown column {strange[0]!r}{advice}")
    if not len(data) and not empty:
        raise SeqattnError(f"{path} has no rows; fill it or remove it")
    return Table(data, path)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        columns = pd.read_csv(path, nrows=0, skipinitialspace=True, encoding="utf-8-sig").columns
        missing = {name: ("",) if name in (*_KEYS, "text") else _MISSING for name in columns}
        return pd.read_csv(
            path, dtype=dict.fromkeys(_KEYS, "category"), keep_default_na=False, na_values=missing, low_memory=False,
            skipinitialspace=True, encoding="utf-8-sig",
        )  # fmt: skip
    except pd.errors.EmptyDataError as error:
        raise SeqattnError(f"{path} is empty; give it a header and rows, or remove it") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SeqattnError(f"{path} cannot be read as CSV ({reason}); mend it") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    require("pyarrow")
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's errors are of these types
        reason = " ".join(str(error).split())[:120]
        raise SeqattnError(f"{path} cannot be read as parquet ({reason}); write it anew") from error
