"""The stays that a run is trained on, and what is kept of them for later."""

import contextlib
import io
import math
import sys
from collections.abc import Iterator
from dataclasses import replace

from seqattn.data.clinical.module import ClinicalDataModule
from seqattn.data.clinical.notes import NoteEncoder, TfidfEncoder, encode_notes
from seqattn.data.clinical.schema import Schema, read_schema
from seqattn.errors import SeqattnError
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.run_directory import RunDirectory, atomic_write, atomic_write_text, is_first_process

SCHEMA, ENCODER = "schema.json", "note_encoder.npz"


def data_module(config: EhrConfig) -> ClinicalDataModule:
    """The data of a configuration; notes that the model does not read are left out."""
    options = config.data.model_dump()
    if not config.model.reads_notes:
        options["notes"] = None
    elif options["notes"] is None:
        raise SeqattnError(
            "this model reads notes, but data.notes is null: set data.notes=tfidf, a file of vectors or an encoder"
        )
    return ClinicalDataModule(**options, seed=config.seed)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """What goes to stderr, the data's summary, appears when the block has met no error, and once for all processes."""
    held = io.StringIO()
    with contextlib.redirect_stderr(held):
        yield
    if is_first_process():
        print(held.getvalue(), end="", file=sys.stderr, flush=True)


def check_validation(data: ClinicalDataModule, devices: int) -> None:
    """Raise SeqattnError where the validation stays cannot choose an epoch, or are too few for so many processes.

    At least one label of theirs must have both values.
    """
    if len(data.val_indices) < devices:
        raise SeqattnError(
            f"{len(data.val_indices)} validation stays cannot be shared by {devices} processes: lower --devices"
        )
    positive = data.stays.labels[data.val_indices].mean(axis=0)
    if not ((positive > 0) & (positive < 1)).any():
        raise SeqattnError(
            f"all {len(data.val_indices)} validation stays have the same label: give more of them, or another split"
        )


def save_schema(run: RunDirectory, data: ClinicalDataModule) -> None:
    """Write what prediction needs of the training data: schema.json, and note_encoder.npz where one was fitted."""
    if is_first_process():
        encoder = data.note_encoder
        if isinstance(encoder, TfidfEncoder):
            atomic_write(run.path / ENCODER, lambda file: file.write(encoder.to_bytes()))
        atomic_write_text(run.path / SCHEMA, data.schema.to_json())


def restore(run: RunDirectory, data: ClinicalDataModule) -> None:
    """Give data that have been set up again what the run keeps: its note encoder, which a refit equals up to rounding.

    Raises:
        SeqattnError: the run lacks it, or the data have changed since the run was trained.
    """
    check_same_data(run, data)
    if isinstance(data.note_encoder, TfidfEncoder):
        data.note_encoder = saved_encoder(run)
        data.stays = encode_notes(data.stays, data.note_encoder)


def check_same_data(run: RunDirectory, data: ClinicalDataModule) -> None:
    """Raise SeqattnError where the run's schema is not that of the data: they have changed since it was trained."""
    before, now = read_schema(run.path / SCHEMA), data.schema
    bare = [
        replace(schema, variables=tuple(replace(variable, mean=None, std=None) for variable in schema.variables))
        for schema in (before, now)
    ]
    if bare[0] != bare[1] or not all(map(_close, _statistics(before), _statistics(now))):
        raise SeqattnError(f"the data are not those that {run.path} was trained on: put those back, or train a new run")


def _statistics(schema: Schema) -> list[float]:
    return [value or 0.0 for variable in schema.variables for value in (variable.mean, variable.std)]


def _close(first: float, second: float) -> bool:
    """Up to rounding, which differs between machines."""
    return math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-4)


def saved_encoder(run: RunDirectory) -> NoteEncoder:
    """The encoder that `save_schema` wrote; raises SeqattnError where it is gone or damaged."""
    path = run.path / ENCODER
    try:
        content = path.read_bytes()
    except OSError:
        raise SeqattnError(f"{path} cannot be read: put it back, or train the run anew") from None
    return TfidfEncoder.from_bytes(content, str(path))
