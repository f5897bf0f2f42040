"""Every source of stays by name: published data sets, generated ones, and the user's folders."""

import functools
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from seqattn.data.cache import cache_folder
from seqattn.data.clinical.archives import READER_VERSION
from seqattn.data.clinical.long_tables import read_long_tables
from seqattn.data.clinical.meds import is_meds, read_meds
from seqattn.data.clinical.mimic3 import read_mimic3
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
