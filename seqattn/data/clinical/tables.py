"""Tables of a folder, parquet or CSV: their columns checked, ids, times and numbers parsed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.errors import SeqattnError, nearest
from seqattn.optional import require

_SUFFIXES = (".parquet", ".csv", ".csv.gz")
_TEXT = ("id", "subject", "variable", "category", "split")


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
        codes, texts = pd.factorize(self.data[column], sort=False)
        missing = np.flatnonzero(codes < 0)
        if len(missing):
            raise self.fault(missing[0], f"the {column} is missing; give one")
        names = np.array([str(text) for text in texts], dtype=np.str_)
        unique, place = np.unique(names, return_inverse=True)
        return place.astype(np.int64)[codes], unique

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column as numbers, NaN where empty; raises SeqattnError at the first text that is none."""
        given = self.data[column]
        values = pd.to_numeric(given, errors="coerce").to_numpy(np.float64)
        strange = np.flatnonzero(np.isnan(values) & given.notna().to_numpy())
        if len(strange):
            text = str(given.iloc[int(strange[0])])[:40]
            raise self.fault(strange[0], f"{column} is {text!r}, not a number; mend it or leave it empty")
        return values

    def is_time(self, column: str) -> bool:
        """Whether a column holds timestamps rather than numbers; raises SeqattnError for a mixture and for gaps."""
        given = self.data[column]
        missing = np.flatnonzero(given.isna().to_numpy())
        if len(missing):
            raise self.fault(missing[0], f"the {column} is missing; give one")
        if pd.api.types.is_datetime64_any_dtype(given):
            return True
        numeric = pd.to_numeric(given, errors="coerce").notna().to_numpy()
        if numeric.all():
            return False
        if numeric.any():
            odd = int(np.flatnonzero(numeric != numeric[0])[0])
            problem = f"{column} is {str(given.iloc[odd])[:40]!r} but {str(given.iloc[0])[:40]!r} in the first row"
            raise self.fault(odd, f"{problem}; give hours or timestamps, not both")
        return True

    def timestamps(self, column: str) -> NDArray[np.datetime64]:
        """A column of timestamps, without time zone (those with one in UTC), to the microsecond."""
        given = self.data[column]
        if not pd.api.types.is_datetime64_any_dtype(given):
            parsed = pd.to_datetime(given, format="ISO8601", errors="coerce", utc=True)
            strange = np.flatnonzero(parsed.isna().to_numpy())
            if len(strange):
                text = str(given.iloc[int(strange[0])])[:40]
                problem = f"{column} is {text!r}, no time such as 2024-05-31 17:45:00; mend it"
                raise self.fault(strange[0], problem)
            given = parsed
        if given.dt.tz is not None:
            given = given.dt.tz_convert("UTC").dt.tz_localize(None)
        return given.to_numpy("datetime64[us]")


def find_table(folder: Path, name: str) -> Path | None:
    """folder/NAME.parquet, NAME.csv or NAME.csv.gz, in this order; None without any."""
    return next((folder / f"{name}{suffix}" for suffix in _SUFFIXES if (folder / f"{name}{suffix}").is_file()), None)


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
        kinds = dict.fromkeys(_TEXT, "category")
        return pd.read_csv(path, dtype=kinds, low_memory=False, skipinitialspace=True, encoding="utf-8-sig")
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
