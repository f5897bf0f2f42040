"""Which data sets of health records there are, and whether they are on this machine."""

from pathlib import Path

from seqattn.data.clinical.archives import data_folder
from seqattn.errors import SeqattnError

# the folder's name, and the files that make it one
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "physionet2012": ("physionet2012", ("set-?.tar*", "set-?")),
    "physionet2019": ("physionet2019", ("training_setA*", "training_setB*", "training*")),
    "mimic3-ihm": ("mimic3", ("in-hospital-mortality",)),
    "mimic3-pheno": ("mimic3", ("phenotyping",)),
}
ANYWHERE = {
    "synthetic": "made when asked for",
    "DIR": "your folder of tables (events, labels, notes, ... as CSV or parquet) or of MEDS",
}


def listed_datasets(data_dir: str | Path | None = None) -> dict[str, str]:
    """What `--dataset` of the health-record commands takes, and where each is; data_dir: as `data_folder` takes it."""
    return {name: _place(name, data_dir) for name in PLACES} | ANYWHERE


def _place(name: str, data_dir: str | Path | None) -> str:
    folder, marks = PLACES[name]
    try:
        return f"in {data_folder(folder, marks, data_dir)}"
    except SeqattnError:
        return f"not here: give the folder of {' or '.join(marks)} with --data-dir"
