"""`seqattn eval speech`: a run's network, or the weights that are shipped, on a test list."""

import errno
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from seqattn.data.speech_folders import evaluation_pairs, find_folder, read_splits
from seqattn.data.speech_pairs import RecordedPairs, readable_pairs, warn_of_unequal
from seqattn.errors import SeqattnError
from seqattn.experiment.enhancers import load_network
from seqattn.experiment.run_directory import RunDirectory, disk_sentence
from seqattn.experiment.speech import data_module, plain_warnings
from seqattn.experiment.speech_config import SpeechConfig, SpeechDataConfig
from seqattn.experiment.speech_evaluation import Pair, Skip, evaluate_clips, format_table, summary, write_table
from seqattn.metrics.composite import Scale
from seqattn.models.pretrained import DEFAULT


class Evaluation(NamedTuple):
    """The table of means with a line on what it is of, and how many files were left out because they failed."""

    text: str
    failed: int


def evaluate_run(
    path: Path | None, data_dir: Path | None = None, scale: Scale = "int16", out: Path | None = None, workers: int = 1,
    device: str | None = None,
) -> Evaluation:  # fmt: skip
    """Measure every file of a test list before and after enhancement.

    path: a run directory, None means the weights that are shipped. data_dir: a folder of pairs, default the test list
    of the run, which the folder that it was trained on stands for too. out: CSV with one row a file, default
    evaluation.csv in the run, for other folders evaluation-FOLDER.csv, with a number where another folder has that name
    already. The results of a finished run get the means: as "test" those of its own list, in "tests" those of others.
    A file that cannot be read or measured is left out with a line on stderr.

    Raises:
        SeqattnError: there is no test list, not a run of speech enhancement, `out` cannot be written, or every file
            failed.
    """
    if path is None and data_dir is None:
        raise SeqattnError("name the folder of pairs to measure the shipped weights on, with --data-dir")
    run = None if path is None else RunDirectory.open(path)
    config = None if run is None else run.read_config(SpeechConfig)
    folder = None if data_dir is None else find_folder(data_dir).resolve()
    if config is not None and folder is not None and folder == _own_folder(config.data):
        folder = None
    name = None if run is None or folder is None else _name_for(run, folder)
    if run is not None and out is None:
        out = _table_place(run, name)
    if out is not None:
        check_place(out)
    network, place = load_network(run, device)
    errors: list[SeqattnError] = []
    skip = _telling(errors)
    pairs = _pairs(config, folder, skip)
    rows = evaluate_clips(pairs, lambda noisy: network.enhance(noisy.to(place)).cpu(), scale, workers, skip)
    means = summary(rows)
    if out is not None:
        write_table(out, rows)
    if run is not None:
        _keep(run, means, name, folder)
    table = f"every file: {out}" if out else "no CSV of every file was written: name one with -o FILE"
    return Evaluation(f"{format_table(means)}{_protocol(run, data_dir if folder else None)}\n{table}", len(errors))


def _telling(errors: list[SeqattnError]) -> Skip:
    """Collects errors and prints each."""

    def skip(error: SeqattnError) -> None:
        errors.append(error)
        print(f"error: {error}", file=sys.stderr, flush=True)

    return skip


def _own_folder(data: SpeechDataConfig) -> Path | None:
    """The folder whose test list is the run's own, where it still exists."""
    try:
        return None if data.data_dir is None else find_folder(data.data_dir).resolve()
    except SeqattnError:
        return None


def _pairs(config: SpeechConfig | None, folder: Path | None, skip: Skip) -> Iterable[Pair]:
    """The test clips: those of a folder, or else the run's own."""
    if folder is not None:
        found = evaluation_pairs(folder)
    else:
        assert config is not None
        if config.data.data_dir is None:  # mixtures
            data = data_module(config)
            data.setup("test")
            return data.test_pairs()
        pairs_only = config.data.source == "pairs"
        own = config.data.data_dir
        found = list(read_splits(own, protocol=config.protocol).test) if pairs_only else evaluation_pairs(own)
    sound, errors = readable_pairs(found)
    for error in errors:
        skip(error)
    recorded = RecordedPairs(sound)
    with plain_warnings():
        warn_of_unequal([recorded])
    return recorded


def _name_for(run: RunDirectory, folder: Path) -> str:
    """A folder's own name, with a number where the results of another one have it."""
    known = run.read_results().get("tests", {}) if run.results.is_file() else {}
    number, name = 1, folder.name
    while known.get(name, {}).get("folder") != str(folder) and (name in known or _table_place(run, name).exists()):
        number += 1
        name = f"{folder.name}-{number}"
    return name


def _table_place(run: RunDirectory, name: str | None) -> Path:
    return run.path / ("evaluation.csv" if name is None else f"evaluation-{name}.csv")


def check_place(path: Path) -> None:
    """Find out whether a file can be written, before the work that it is for.

    Raises:
        SeqattnError: it cannot.
    """
    try:
        if os.path.lexists(path) and not path.is_file():
            raise SeqattnError(f"{path} is not a file: name a CSV file with -o")
        folder = next(parent for parent in path.parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SeqattnError(disk_sentence(path, error)) from error


def _keep(run: RunDirectory, means: dict[str, Any], name: str | None, folder: Path | None) -> None:
    """Add the means to the results of a finished run."""
    if not run.results.is_file():
        return
    results = run.read_results()
    if name is None:
        results["test"] = means
    else:
        results["tests"] = results.get("tests", {}) | {name: {"folder": str(folder), **means}}
    run.write_results(results)


def _protocol(run: RunDirectory | None, data_dir: Path | None) -> str:
    """What the table is of: network, data, and how the network was selected."""
    data = str(data_dir) if data_dir else "the run's own test list"
    if run is None:
        return f"{DEFAULT}, the shipped weights, on {data}"
    if not run.results.is_file():
        return f"{run.path}, unfinished, on {data}"
    results = run.read_results()
    return f"{run.path} on {data}; {results['protocol']} protocol: {results['selection']}"
