"""Series files through a cache of parsed copies, keyed by the file's content."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from seqattn.data.arff_file import read_arff
from seqattn.data.series import SeriesSet
from seqattn.data.ts_file import read_ts
from seqattn.errors import SeqattnError

READER_VERSION = 1  # raise it when a reader's result changes
_READERS: dict[str, Callable[[Path], SeriesSet]] = {".ts": read_ts, ".arff": read_arff}


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/seqattn, or ~/.cache/seqattn; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache") / "seqattn"


def load_series(path: str | Path) -> SeriesSet:
    """Read a .ts or .arff file, from its parsed copy where there is one.

    The copy's name is the SHA-256 of the file's content, so a changed file is read anew. A cache that is damaged, full
    or read-only only costs time.

    Raises SeqattnError for a missing file, another suffix and whatever the reader refuses.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise SeqattnError(f"{path} ends in {path.suffix or 'no suffix'!r}; give a .ts or .arff file")
    copy = cache_folder() / "series" / f"{_digest(path)}{path.suffix.lower()}.v{READER_VERSION}.npz"
    series = _load(copy)
    if series is None:
        series = reader(path)
        _save(copy, series)
    return series


def _digest(path: Path) -> str:
    try:
        if not path.is_file():
            raise SeqattnError(f"{path} is not a file; check the path")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SeqattnError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error


def _load(copy: Path) -> SeriesSet | None:
    try:
        with np.load(copy, allow_pickle=False) as arrays:
            values, lengths = arrays["values"], arrays["lengths"]
            labels, classes = arrays["labels"], tuple(arrays["classes"].tolist())
    except Exception:  # whatever the damage, the text is still there
        return None
    kinds = (values.dtype, lengths.dtype, labels.dtype.kind) == (np.float32, np.int64, "U")
    if not kinds or values.ndim != 3 or not lengths.shape == labels.shape == values.shape[:1]:
        return None
    return SeriesSet(values, lengths, labels, classes)


def _save(copy: Path, series: SeriesSet) -> None:
    with contextlib.suppress(OSError):
        copy.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=copy.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                classes = np.array(series.classes, dtype=np.str_)
                np.savez(file, values=series.values, lengths=series.lengths, labels=series.labels, classes=classes)
            os.replace(temporary, copy)
        except BaseException:
            os.unlink(temporary)
            raise
