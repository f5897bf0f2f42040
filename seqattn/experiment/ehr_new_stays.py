"""Stays that a run was not trained on: where they lie, how they are read, and as the run's network takes them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seqattn.data.clinical.datasets import ClinicalDataset
from seqattn.data.clinical.meds import is_meds
from seqattn.data.clinical.module import prediction_dataset
from seqattn.data.clinical.note_files import is_vector_file
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.schema import read_schema
from seqattn.data.clinical.sources import SOURCES, read_source, takes
from seqattn.data.clinical.tables import find_table
from seqattn.errors import SeqattnError
from seqattn.experiment.ehr_config import PATHS, EhrConfig, EhrDataConfig
from seqattn.experiment.ehr_data import SCHEMA, saved_encoder
from seqattn.experiment.run_directory import RunDirectory

TRANSFERRED = ("duplicates", "earliest_note", "code_map")  # options of a folder that hold for another one
NO_NOTES = "none"  # of --notes: these patients have none


@dataclass(frozen=True)
class Source:
    """Arguments of `read_source`."""

    dataset: str
    data_dir: str | None
    options: Mapping[str, Any]


def new_stays(
    run: RunDirectory,
    config: EhrConfig,
    dataset: str,
    unknown: Literal["error", "ignore"] = "error",
    notes: str | None = None,
) -> ClinicalDataset:
    """All stays of a source as the run's network takes them, their labels unread.

    dataset: a name; a folder of tables or of MEDS; or one laid out as the named data set that the run was trained on.
    unknown: what a variable that the run does not know does. notes: a file of vectors of their notes, where the run was
    trained on such a file; NO_NOTES where they have none.
    A source without notes is one of patients without notes, for a run that reads them too; `counts` says so.

    Raises:
        SeqattnError: the run lacks its schema or encoder, or the stays do not fit it.
    """
    data, schema = config.data, read_schema(run.path / SCHEMA)
    wanted = _notes_of(run, config, dataset, notes)
    stays = _read(source_of(data, dataset), schema.window, wanted)
    if wanted == NO_NOTES or (wanted is not None and stays.notes is None and not is_vector_file(wanted)):
        why = "--notes none" if wanted == NO_NOTES else f"{dataset} has no notes"
        stays = stays.counted(f"stays taken as patients without notes ({why})", len(stays))
        wanted = None
    return prediction_dataset(
        stays, schema, static=data.static, fill=data.fill, max_rows=data.max_rows, max_notes=data.max_notes,
        notes=wanted, encoder=saved_encoder(run) if wanted == "tfidf" else None, unknown=unknown,
    )  # fmt: skip


def moved_data(data: EhrDataConfig, folder: str) -> EhrDataConfig:
    """The data of a run whose files lie in another folder now: a named set's data_dir, or the folder of tables."""
    there, named = _absolute(folder), data.dataset in SOURCES
    before = data.data_dir if named else data.dataset
    options = {name: _moved(value, before, there) if name in PATHS else value for name, value in data.options.items()}
    changed = {"data_dir" if named else "dataset": there, "notes": _moved(data.notes, before, there)}
    return data.model_copy(update=changed | {"options": options})


def source_of(data: EhrDataConfig, dataset: str) -> Source:
    """The run's own data with its options, the same layout in another folder, or a folder of tables."""
    if _same(dataset, data.dataset):
        return Source(dataset, data.data_dir, data.options)
    folder = Path(dataset).expanduser()
    if dataset in SOURCES or not folder.is_dir():
        return Source(dataset, data.data_dir, {})
    if data.dataset in SOURCES and not is_meds(folder) and find_table(folder, "events") is None:
        return _same_layout(data, _absolute(dataset))
    kept = [name for name in TRANSFERRED if name in data.options and takes(dataset, name)]
    return Source(dataset, None, {name: data.options[name] for name in kept})


def _same_layout(data: EhrDataConfig, folder: str) -> Source:
    """Another folder of a named data set; generated patients lie in folders as MIMIC's do."""
    name = f"mimic3-{data.options.get('task', 'ihm')}" if data.dataset == "synthetic" else data.dataset
    options = moved_data(data, folder).options
    kept = {
        option: value
        for option, value in options.items()
        if takes(name, option) and (option not in PATHS or os.path.exists(value))
    }
    return Source(name, folder, kept)


def _notes_of(run: RunDirectory, config: EhrConfig, dataset: str, given: str | None) -> str | None:
    """What encodes the notes of `dataset`, None where none are read."""
    trained = config.data.notes if config.model.reads_notes else None
    vectors = trained is not None and is_vector_file(trained)
    if given is not None and not vectors:
        raise SeqattnError(f"{run.path} was not trained on a file of note vectors: leave --notes out")
    if vectors and given is None and not _same(dataset, config.data.dataset):
        raise SeqattnError(
            f"{run.path} was trained on note vectors of a file: give those of {dataset} with --notes FILE, or --notes "
            f"{NO_NOTES} where there are none"
        )
    return given or trained


def _read(source: Source, window: float, notes: str | None) -> Stays:
    """The unlabelled stays of a source, with their notes' texts if any are wanted."""
    options = dict(source.options)
    if takes(source.dataset, "window"):
        options.setdefault("window", window)
    if notes in (None, NO_NOTES) and takes(source.dataset, "with_notes"):
        options["with_notes"] = False
    return read_source(source.dataset, source.data_dir, labelled=False, **options)


def _same(dataset: str, trained: str) -> bool:
    return dataset == trained or (not {dataset, trained} & SOURCES.keys() and _absolute(dataset) == _absolute(trained))


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _moved(path: Any, before: str | None, there: str) -> Any:
    """A path below the folder `before` as the same path below `there`; anything else as it is."""
    if not isinstance(path, str) or before is None or not Path(path).is_relative_to(before):
        return path
    return str(Path(there) / Path(path).relative_to(before))
