"""Every source of stays by name: published data sets, generated ones, and the user's folders."""

import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqattn.data.clinical.long_tables import read_long_tables
from seqattn.data.clinical.meds import is_meds, read_meds
from seqattn.data.clinical.mimic3 import read_mimic3
from seqattn.data.clinical.physionet2012 import read_physionet2012
from seqattn.data.clinical.physionet2019 import read_physionet2019
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.synthetic_mimic import write_synthetic_mimic
from seqattn.errors import SeqattnError, nearest


def _mimic3(task: str) -> Callable[..., Stays]:
    def read(
        data_dir: str | None = None,
        *,
        notes_dir: str | None = None,
        clock: str = "intime",
        start_times: str | None = None,
        earliest_note: float = -24.0,
        duplicates: str = "last",
        labelled: bool = True,
    ) -> Stays:
        return read_mimic3(
            data_dir, task=task, notes_dir=notes_dir, clock=clock, start_times=start_times,
            earliest_note=earliest_note, duplicates=duplicates, labelled=labelled,
        )  # fmt: skip

    return read


def _synthetic(
    data_dir: str | None = None, *, stays: int = 600, task: str = "ihm", seed: int = 0, labelled: bool = True
) -> Stays:
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_mimic(Path(folder), stays=stays, seed=seed)
        return read_mimic3(folder, task=task, labelled=labelled)


SOURCES: dict[str, Callable[..., Stays]] = {
    "physionet2012": read_physionet2012,
    "physionet2019": read_physionet2019,
    "mimic3-ihm": _mimic3("ihm"),
    "mimic3-pheno": _mimic3("pheno"),
    "synthetic": _synthetic,
}


def read_source(dataset: str, data_dir: str | None = None, *, labelled: bool = True, **options: Any) -> Stays:
    """The stays of a source.

    dataset: a key of SOURCES, or a folder of long tables or of MEDS. data_dir: where a named source is looked for.
    labelled: False reads stays without labels, for prediction. options: of the source's reader.

    Raises SeqattnError for an unknown source or option, the nearest offered, and for what the reader refuses.
    """
    folder = Path(dataset).expanduser()
    reader = SOURCES.get(dataset)
    if reader is None:
        if not folder.is_dir():
            advice = nearest(dataset, SOURCES) or f"; known are {', '.join(SOURCES)}, or give a folder of tables"
            raise SeqattnError(f"there is no data set and no folder {dataset!r}{advice}")
        reader = read_meds if is_meds(folder) else read_long_tables
        data_dir = str(folder)
    known = [name for name in inspect.signature(reader).parameters if name not in ("data_dir", "folder", "labelled")]
    strange = [name for name in options if name not in known]
    if strange:
        advice = nearest(strange[0], known) or f"; known are {', '.join(known)}"
        raise SeqattnError(f"{dataset} has no option {strange[0]!r}{advice}")
    return reader(data_dir, labelled=labelled, **options)
