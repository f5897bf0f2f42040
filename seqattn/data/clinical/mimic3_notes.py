"""Notes of MIMIC-III stays, as ClinicalNotesICU writes them, on the clock of the series or on the published one."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.events import add
from seqattn.data.clinical.records import Notes, starts_of
from seqattn.errors import SeqattnError

_STAY = re.compile(r"(\d+)_(?:episode)?(\d+)")


@dataclass(frozen=True)
class Clock:
    """How a note's hours are counted, see `mimic3.read_mimic3`."""

    name: Literal["intime", "official"]
    start_times: Path | None
    earliest: float


def find_notes(root: Path, notes_dir: str | Path | None) -> Path | None:
    """The folder of notes: notes_dir, or `notes` in the data; None without either."""
    folder = root / "notes" if notes_dir is None else Path(notes_dir).expanduser()
    if notes_dir is not None and not folder.is_dir():
        raise SeqattnError(f"the folder of notes {folder} does not exist; check the path")
    return folder if folder.is_dir() else None


def read_notes(
    folder: Path, root: Path, ids: NDArray[np.str_], window: float, clock: Clock, counts: dict[str, int]
) -> Notes:
    """The notes of the stays `ids` inside the window, of files SUBJECT_N, with or without .json, for episode N.

    A file is a JSON object {time: [sentence, ...]}, or a list of objects with time, text and any others, which can hold
    several notes of one time. root: the benchmark's folder of subjects, for their stays.csv.
    Notes outside the window, without text, and of stays without a start are left out and counted.
    """
    if clock.name == "official" and clock.start_times is None:
        raise SeqattnError("clock 'official' needs start_times, a CSV or JSON file of a start for each stay; give it")
    starts = _table_of_starts(clock.start_times) if clock.start_times and clock.name == "official" else None
    files = {file.name.removesuffix(".json"): file for file in folder.rglob("*") if file.is_file()}
    owners, hours, texts = [], [], []
    for stay, name in enumerate(ids.tolist()):
        subject, number = _parts(name)
        file = files.get(f"{subject}_{number}")
        if file is None:
            continue
        start = _intime(root, subject, number) if starts is None else starts.get((subject, number))
        for time, text in _notes_of(file):
            if not text.strip():
                add(counts, "notes without text left out", 1)
                continue
            if start is None:
                add(counts, "notes of stays without a start left out", 1)
                continue
            owners.append(stay)
            hours.append((_timestamp(time, file) - start) / np.timedelta64(3600, "s"))
            texts.append(text)
    return _inside(np.array(owners, dtype=np.int64), np.array(hours), texts, len(ids), window, clock, counts)


def _inside(
    owners: NDArray[np.int64],
    hours: NDArray[np.float64],
    texts: list[str],
    stays: int,
    window: float,
    clock: Clock,
    counts: dict[str, int],
) -> Notes:
    if clock.name == "official":
        kept = np.floor(hours) <= window
        hours = hours - 1
    else:
        kept = (hours >= clock.earliest) & (hours <= window)
    add(counts, "notes outside the window left out", (~kept).sum())
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.lexsort((hours[chosen], owners[chosen]))]
    ordered = tuple(texts[note] for note in chosen.tolist())
    return Notes(starts_of(owners[chosen], stays), hours[chosen].astype(np.float32), ordered)


def _parts(name: str) -> tuple[str, str]:
    match = _STAY.match(name)
    if match is None:
        raise SeqattnError(f"{name!r} names no stay; it must be like 10006_episode1")
    return match[1], match[2]


def _intime(root: Path, subject: str, number: str) -> np.datetime64:
    """INTIME of the subject's stay of that number, counted from 1 in the order of INTIME, then OUTTIME."""
    path = next((table for part in ("test", "train") if (table := root / part / subject / "stays.csv").is_file()), root)
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            stays = [
                (_timestamp(row["INTIME"], path), _timestamp(row["OUTTIME"], path)) for row in csv.DictReader(lines)
            ]
        return sorted(stays)[int(number) - 1][0]
    except (OSError, KeyError, IndexError) as error:
        problem = f"the start of stay {number} of subject {subject} is not in {path} ({error})"
        raise SeqattnError(f"{problem}; its notes need it: put the benchmark's folder root there") from error


def _table_of_starts(path: Path) -> dict[tuple[str, str], np.datetime64]:
    if path.suffix not in (".csv", ".json"):
        raise SeqattnError(f"{path} is neither .csv nor .json; write the start times as one of them")
    try:
        if path.suffix == ".json":
            entries = dict(json.loads(path.read_text(encoding="utf-8")))
        else:
            table = pd.read_csv(path, dtype=str)
            entries = dict(zip(table["stay"], table["start"], strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{path} is no table of start times"
        raise SeqattnError(f"{problem}; give CSV with columns stay and start, or a JSON object of them") from error
    return {_parts(str(stay)): _timestamp(start, path) for stay, start in entries.items()}


def _notes_of(file: Path) -> Iterator[tuple[str, str]]:
    """Time and text of each note of a file."""
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        entries = data.items() if isinstance(data, dict) else [(note["time"], note["text"]) for note in data]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{file} is neither a JSON object of times and sentences nor a list of objects with time and text"
        raise SeqattnError(f"{problem}; mend or remove it") from error
    for time, text in entries:
        yield str(time), text if isinstance(text, str) else " ".join(str(sentence) for sentence in text or ())


def _timestamp(text: Any, file: Path) -> np.datetime64:
    try:
        return np.datetime64(str(text).strip(), "us")
    except ValueError as error:
        raise SeqattnError(f"{file}: {str(text)[:40]!r} is no time such as 2130-05-31 17:45:00; mend it") from error
