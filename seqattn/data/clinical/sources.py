"""Every source of stays by name: published data sets, generated ones, and the user's folders."""

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from seqattn.data.cache import cache_folder
from seqattn.data.clinical.archives import READER_VERSION
from seqattn.data.clinical.long_tables import read_long_tables
from seqattn.data.clinical.meds import is_meds, read_meds
from seqattn.data.clinical.mimic3 import read_mimic3
from seqattn.data.clinical.note_files import attach_vectors, is_vector_file
from seqattn.data.clinical.physionet2012 import read_physionet2012
from seqattn.data.clinical.physionet2019 import read_physionet2019
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.synthetic_mimic import write_synthetic_mimic
from seqattn.errors import SeqattnError, nearest


def _synthetic(
    data_dir: str | None = None,
    *,
    stays: int = 600,
    task: Literal["ihm", "pheno"] = "ihm",
    seed: int = 0,
    labelled: bool = True,
) -> Stays:
    """Invented patients, written once into the cache; data_dir is not used."""
    if stays < 50:
        raise SeqattnError(f"stays is {stays}; it must be at least 50")
    folder = cache_folder() / "clinical" / f"synthetic-{READER_VERSION}-{stays}-{seed}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                write_synthetic_mimic(Path(temporary) / "data", stays=stays, seed=seed)
                os.replace(Path(temporary) / "data", folder)
        except OSError as error:
            problem = f"{folder} cannot be written ({error.strerror})"
            raise SeqattnError(f"{problem}; set XDG_CACHE_HOME to a folder with room") from error
    return read_mimic3(folder, task=task, labelled=labelled)


SOURCES: dict[str, Callable[..., Stays]] = {
    "physionet2012": read_physionet2012,
    "physionet2019": read_physionet2019,
    "mimic3-ihm": functools.partial(read_mimic3, task="ihm"),
    "mimic3-pheno": functools.partial(read_mimic3, task="pheno"),
    "synthetic": _synthetic,
}


def read_source(dataset: str, data_dir: str | None = None, *, labelled: bool = True, **options: Any) -> Stays:
    """The stays of a source.

    dataset: a key of SOURCES, or a folder of long tables or of MEDS. data_dir: where a named source is looked for.
    labelled: False reads stays without labels, for prediction. options: of the source's reader.

    Raises SeqattnError for an unknown source or option, the nearest offered, and for what the reader refuses.
    """
    reader, place = _reader(dataset, data_dir)
    known = _options(reader)
    strange = [name for name in options if name not in known]
    if strange:
        advice = nearest(strange[0], known) or f"; known are {', '.join(known)}"
        raise SeqattnError(f"{dataset} has no option {strange[0]!r}{advice}")
    return reader(place, labelled=labelled, **options)


def takes(dataset: str, option: str) -> bool:
    """Whether the source's reader has an option."""
    return option in _options(_reader(dataset, None)[0])


def read_stays(
    dataset: str | Stays,
    data_dir: str | None,
    options: Mapping[str, Any],
    notes: str | None,
    *,
    labelled: bool = True,
    window: float | None = None,
) -> Stays:
    """The stays of a source, or the given ones, with the notes that `notes` asks for.

    notes: None leaves texts out, and keeps the vectors that given stays hold; a file of vectors is attached.
    window: hours, where the source's reader takes a window and the options name none. Other arguments: `read_source`.

    Raises SeqattnError for what `read_source` refuses, options of given stays, and missing notes.
    """
    if isinstance(dataset, Stays):
        return _given(dataset, data_dir, options, notes)
    more: dict[str, Any] = {}
    if notes is None and takes(dataset, "with_notes"):
        more["with_notes"] = False
    if window is not None and takes(dataset, "window"):
        more["window"] = window
    stays = read_source(dataset, data_dir, labelled=labelled, **{**more, **options})
    if notes is not None:
        return _with_notes(stays, notes, dataset)
    return replace(stays, notes=None)


def _given(stays: Stays, data_dir: str | None, options: Mapping[str, Any], notes: str | None) -> Stays:
    if options or data_dir is not None:
        raise SeqattnError("options and data_dir are for a reader, but the stays are there already; leave them out")
    encoded = stays.notes is not None and stays.notes.vectors is not None
    if notes is None:
        return stays if encoded else replace(stays, notes=None)
    if encoded:
        raise SeqattnError(f"the stays' notes have vectors, so notes={notes!r} has nothing to do; leave it out")
    return _with_notes(stays, notes, "the given data")


def _with_notes(stays: Stays, notes: str, source: str) -> Stays:
    if is_vector_file(notes):
        return attach_vectors(stays, notes)
    if stays.notes is None:
        raise SeqattnError(f"{source} has no notes; set notes to null or give a file of vectors")
    return stays


def _reader(dataset: str, data_dir: str | None) -> tuple[Callable[..., Stays], str | None]:
    if dataset in SOURCES:
        return SOURCES[dataset], data_dir
    folder = Path(dataset).expanduser()
    if not folder.is_dir():
        advice = nearest(dataset, SOURCES) or f"; known are {', '.join(SOURCES)}, or give a folder of tables"
        raise SeqattnError(f"there is no data set and no folder {dataset!r}{advice}")
    return read_meds if is_meds(folder) else read_long_tables, str(folder)


def _options(reader: Callable[..., Stays]) -> list[str]:
    fixed = {"data_dir", "folder", "labelled", *getattr(reader, "keywords", {})}
    return [name for name in inspect.signature(reader).parameters if name not in fixed]
