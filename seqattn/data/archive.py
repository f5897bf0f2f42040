"""Where the UEA/UCR data sets are: the user's folders, sktime's, the cache, or the archive's server."""

import functools
import os
import runpy
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from seqattn.data.cache import cache_folder
from seqattn.errors import SeqattnError, nearest

Split = Literal["TRAIN", "TEST"]
_SPLITS: tuple[Split, Split] = ("TRAIN", "TEST")
_SUFFIXES = (".ts", ".arff")
_REGRESSION = {"Covid3Month", "Tecator"}  # sktime carries them in the same format
_MIRRORS = [
    "https://timeseriesclassification.com/aeon-toolkit",
    "https://github.com/sktime/sktime-datasets/raw/main/TSC",
]
_TIMEOUT = 20.0  # seconds without an answer


def find_split(dataset: str, split: Split, data_dir: str | Path | None = None) -> Path:
    """The file of one split of a data set, downloaded if need be.

    Looked for as FOLDER/DATASET_SPLIT, FOLDER/DATASET/DATASET_SPLIT and FOLDER/uea/DATASET/DATASET_SPLIT, .ts before
    .arff: in `data_dir`, in $SEQATTN_DATA (where unset: ../shared/data, if there is one), among the files of sktime and
    among earlier downloads. Any other name of the archive is downloaded into the cache. Where `data_dir` is given and
    does not hold the data set, a line on stderr says what is read instead.

    Raises SeqattnError for a `data_dir` that is no folder, a folder with only one of the splits, a failed download
    and an unknown name.
    """
    file = _find(dataset, data_dir)[split]
    if data_dir is not None and _user_folder(data_dir) not in Path(os.path.abspath(file)).parents:
        _report_elsewhere(dataset, file.parent, _user_folder(data_dir))
    return file


def _find(dataset: str, data_dir: str | Path | None) -> dict[Split, Path]:
    for folder in _folders(dataset, data_dir):
        found = _splits_in(folder, dataset)
        if len(found) == 1:
            (present,) = found
            missing = "TEST" if present == "TRAIN" else "TRAIN"
            absent = f"{dataset}_{missing}{found[present].suffix}"
            raise SeqattnError(f"{folder} has {found[present].name} but no {absent}; put {absent} beside it")
        if found:
            return found
    if dataset in _archive_names():
        return _download(dataset, _advised_folder(dataset, data_dir))
    known = {*_archive_names(), *bundled_datasets(), *local_datasets(data_dir)}
    name = dataset[:100]
    files = f"{name}_TRAIN.ts and {name}_TEST.ts"
    advice = nearest(dataset, known) or f"; put {files} into {_advised_folder(name, data_dir)}"
    raise SeqattnError(f"there is no data set {name!r} in the folders searched or in the archive{advice}")


@functools.cache
def _report_elsewhere(dataset: str, found: Path, asked: Path) -> None:
    """Say once, in the first of several processes, that a data set is not where the user expects it."""
    if all(os.environ.get(variable, "0") == "0" for variable in ("RANK", "LOCAL_RANK", "NODE_RANK")):
        print(f"{dataset} is not in {asked}: reading it from {found}", file=sys.stderr, flush=True)


def bundled_datasets() -> list[str]:
    """Names of the classification data sets inside the sktime package, sorted: they need no network."""
    return sorted(_names_in(_sktime_folder() / "data") - _REGRESSION)


def local_datasets(data_dir: str | Path | None = None) -> list[str]:
    """Names, sorted, of the data sets in `data_dir`, $SEQATTN_DATA (or ../shared/data) and earlier downloads."""
    roots = [*_user_roots(data_dir), cache_folder() / "datasets"]
    return sorted(set().union(*(_names_in(folder) for root in roots for folder in (root, root / "uea"))))


def datasets_in(data_dir: str | Path) -> list[str]:
    """Names, sorted, of the data sets whose files lie in `data_dir` itself; of those in folders below, where none do.

    Raises SeqattnError where `data_dir` is no folder.
    """
    folder = _user_folder(data_dir)
    names = _names_in(folder) | _names_in(folder / "uea")
    return sorted({name for name in names if _splits_in(folder, name)} or names)


def _user_folder(data_dir: str | Path) -> Path:
    folder = Path(os.path.abspath(os.path.expanduser(data_dir)))
    if folder.is_file():
        raise SeqattnError(f"the data folder {folder} is a file; give the folder that holds it")
    if not folder.is_dir():
        raise SeqattnError(f"the data folder {folder} does not exist; check the path")
    return folder


def _user_roots(data_dir: str | Path | None) -> Iterator[Path]:
    if data_dir is not None:
        yield _user_folder(data_dir)
    yield Path(os.path.expanduser(os.environ.get("SEQATTN_DATA") or "../shared/data"))


def _folders(dataset: str, data_dir: str | Path | None) -> Iterator[Path]:
    for root in (*_user_roots(data_dir), _sktime_folder() / "data", cache_folder() / "datasets"):
        yield from (root, root / dataset, root / "uea" / dataset)


def _splits_in(folder: Path, dataset: str) -> dict[Split, Path]:
    files: dict[Split, Path] = {}
    for split in _SPLITS:
        candidates = (folder / f"{dataset}_{split}{suffix}" for suffix in _SUFFIXES)
        file = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
        if file is not None:
            files[split] = file
    return files


def _names_in(root: Path) -> set[str]:
    train_files = [file for suffix in _SUFFIXES for file in root.glob(f"*_TRAIN{suffix}")]
    train_files += [file for suffix in _SUFFIXES for file in root.glob(f"*/*_TRAIN{suffix}")]
    names = {file.stem.removesuffix("_TRAIN") for file in train_files}
    return {name for name in names if any(len(_splits_in(folder, name)) == 2 for folder in (root, root / name))}


def _sktime_folder() -> Path:
    """sktime's folder of data sets; importing sktime itself takes seconds."""
    spec = find_spec("sktime")
    if spec is None or spec.origin is None:
        raise SeqattnError("the package sktime is not installed; install it with 'pip install sktime'")
    return Path(spec.origin).parent / "datasets"


@functools.cache
def _archive_names() -> tuple[str, ...]:
    names = runpy.run_path(str(_sktime_folder() / "tsc_dataset_names.py"))
    return (*names["univariate"], *names["multivariate"])


def _advised_folder(dataset: str, data_dir: str | Path | None) -> Path:
    root = data_dir or os.environ.get("SEQATTN_DATA") or cache_folder() / "datasets"
    return Path(os.path.expanduser(root)) / dataset


def _download(dataset: str, advised: Path) -> dict[Split, Path]:
    folder = cache_folder() / "datasets" / dataset
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_TIMEOUT)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _fetch(dataset, temporary)
            unpacked = next(Path(temporary).rglob(f"{dataset}_TRAIN.*")).parent
            files = _splits_in(unpacked, dataset)
            downloaded = {split: folder / files[split].name for split in _SPLITS}
            unpacked.rename(folder)
        return downloaded
    except Exception as error:  # sktime wraps network, archive and disk failures in many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SeqattnError(
            f"{dataset} is not on this machine and its download failed (no network?): put {dataset}_TRAIN.ts and "
            f"{dataset}_TEST.ts into {advised} ({reason})"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _fetch(dataset: str, folder: str) -> None:
    from sktime.datasets._dataset_downloader import DatasetDownloader

    urls = [f"{mirror}/{dataset}.zip" for mirror in _MIRRORS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for huggingface-hub, which is optional
        DatasetDownloader(hf_repo_name="sktime/tsc-datasets", folder_name=dataset, fallback_urls=urls).download(folder)
