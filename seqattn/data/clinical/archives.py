"""Many small text files in a .tar.xz archive or a folder, read as one table and kept parsed in the cache."""

import contextlib
import hashlib
import io
import lzma
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.cache import cache_folder
from seqattn.errors import SeqattnError, nearest

READER_VERSION = 2  # raise it when a parsed copy changes
Arrays = dict[str, NDArray]


def data_folder(name: str, marks: tuple[str, ...], data_dir: str | Path | None) -> Path:
    """The folder of a data set: one that holds something which matches one of the patterns `marks`.

    Looked for as data_dir, data_dir/NAME and data_dir/ehr/NAME; without data_dir in $SEQATTN_DATA (where unset:
    ../shared/data). Raises SeqattnError where it is not found.
    """
    root = Path(os.path.expanduser(data_dir or os.environ.get("SEQATTN_DATA") or "../shared/data"))
    if data_dir is not None and not root.is_dir():
        raise SeqattnError(f"the data folder {root} does not exist; check the path")
    for folder in (root, root / name, root / "ehr" / name):
        if any(next(folder.glob(mark), None) for mark in marks):
            return folder
    raise SeqattnError(f"{root} holds no {name}: there is no {' or '.join(marks)} in it; check the path")


def archive_or_folder(folder: Path, name: str) -> Path:
    """folder/NAME.tar.xz (or .tar.gz, .tgz, .tar), else the folder folder/NAME; raises SeqattnError without either."""
    for suffix in (".tar.xz", ".tar.gz", ".tgz", ".tar"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    if (folder / name).is_dir():
        return folder / name
    raise SeqattnError(f"{folder} has neither {name}.tar.xz nor a folder {name}; put one of them there")


def text_files(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file that ends in `suffix`, sorted by name, of an archive or a folder.

    Raises SeqattnError where the archive is damaged or there is no such file.
    """
    contents: dict[str, bytes] = {}
    try:
        if path.is_dir():
            contents = {file.name: file.read_bytes() for file in path.rglob(f"*{suffix}")}
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = Path(member.name).name
                    stream = archive.extractfile(member) if name.endswith(suffix) else None
                    if stream is not None:
                        contents[name] = stream.read()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise SeqattnError(f"{path} is damaged or cannot be read ({error}); fetch it anew") from error
    if not contents:
        raise SeqattnError(f"{path} holds no file *{suffix}; check the path")
    yield from sorted(contents.items())


def joined(
    source: Path, files: Iterable[tuple[str, bytes]], header: bytes, separator: bytes = b","
) -> tuple[list[str], NDArray[np.int64], io.BytesIO]:
    """Names of the files without suffix, lines of each without its header, and all those lines as one text.

    Raises SeqattnError, naming source and file, where one does not begin with `header` or has a row of more or fewer
    fields; fields may not be quoted.
    """
    between = header.count(separator)
    names, lengths, parts = [], [], []
    for name, content in files:
        first, _, body = content.replace(b"\r\n", b"\n").partition(b"\n")
        if first.strip() != header:
            given = first.strip().decode(errors="replace").split(separator.decode())
            raise SeqattnError(f"{source}, {name}: {_difference(given, header.decode().split(separator.decode()))}")
        body = body.strip(b"\n")
        body += b"\n" if body else b""
        if body.count(separator) != between * body.count(b"\n"):
            problem = f"{source}, {name}: a row has not the {between + 1} fields of the header"
            raise SeqattnError(f"{problem}; mend or remove the file")
        names.append(name.rpartition(".")[0])
        lengths.append(body.count(b"\n"))
        parts.append(body)
    return names, np.array(lengths, dtype=np.int64), io.BytesIO(b"".join(parts))


def _difference(given: list[str], due: list[str]) -> str:
    """In which column a header is not the one that is due, and what to do."""
    lacking = [name for name in due if name not in given]
    strange = [name for name in given if name not in due]
    if lacking:
        instead = f" (it has {', '.join(strange[:3])[:60]})" if strange else ""
        advice = nearest(lacking[0], strange) or f"{instead}; mend or remove the file"
        return f"the header has no column {lacking[0]!r}{advice}"
    if strange:
        return f"the header has a column {strange[0][:60]!r} that is not due; mend or remove the file"
    place = next((place for place, (a, b) in enumerate(zip(given, due, strict=False)) if a != b), len(due))
    where = f"column {place + 1} of the header is {given[place]!r}"
    return f"{where}, which is out of order or there twice; mend or remove the file"


def no_number(
    text: io.BytesIO, columns: Sequence[str], numeric: Iterable[str], separator: str = ","
) -> tuple[int, str]:
    """The line of the first entry of the columns `numeric` that is no number, and that entry with its column's name.

    text: what `joined` gave, in which pandas has found such an entry.
    """
    text.seek(0)
    table = pd.read_csv(text, sep=separator, header=None, names=list(columns), dtype=str, skip_blank_lines=False)
    strange = [(int(np.flatnonzero(bad)[0]), name) for name in numeric if (bad := _no_number(table[name])).any()]
    line, name = min(strange, default=(0, columns[0]))
    return line, f"{name} is {str(table[name].iloc[line])[:40]!r}"


def _no_number(column: pd.Series) -> NDArray[np.bool_]:
    return (pd.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy(bool)


def cached(archive: Path, parse: Callable[[Path], Arrays]) -> Arrays:
    """What `parse` makes of an archive, from its parsed copy where there is one; a folder is parsed every time.

    The copy's name is the SHA-256 of the archive's content. A cache that is damaged, full or read-only costs only time.
    """
    if archive.is_dir():
        return parse(archive)
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SeqattnError(f"{archive} cannot be read ({error.strerror}); check its permissions") from error
    copy = cache_folder() / "clinical" / f"{digest}.{parse.__name__.strip('_')}.v{READER_VERSION}.npz"
    arrays = load_arrays(copy)
    if arrays is None:
        arrays = parse(archive)
        save_arrays(copy, arrays)
    return arrays


def save_arrays(copy: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write a copy into the cache, whole or not at all; a disk that refuses is no error."""
    with contextlib.suppress(OSError):
        copy.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=copy.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, copy)
        except BaseException:
            os.unlink(temporary)
            raise


def load_arrays(copy: Path) -> Arrays | None:
    """A copy that `save_arrays` wrote; None where there is none or it is damaged."""
    try:
        with np.load(copy, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception:  # whatever the damage, the archive is still there
        return None
