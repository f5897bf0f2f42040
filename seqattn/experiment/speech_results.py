"""`seqattn eval speech`: a run's network, or the weights that are shipped, on a test list."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from seqattn.data.speech_folders import evaluation_pairs
from seqattn.data.speech_pairs import RecordedPairs, warn_of_unequal
from seqattn.errors import SeqattnError
from seqattn.experiment.enhancers import load_network
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.speech import data_module
from seqattn.experiment.speech_config import SpeechConfig
from seqattn.experiment.speech_evaluation import evaluate_clips, format_table, summary, write_table
from seqattn.metrics.composite import Scale
from seqattn.models.pretrained import DEFAULT

Pairs = Iterable[tuple[str, Tensor, Tensor]]


def evaluate_run(
    path: Path | None, data_dir: Path | None = None, scale: Scale = "int16", out: Path | None = None, workers: int = 1,
    device: str | None = None,
) -> str:  # fmt: skip
    """Measure every file of a test list before and after enhancement; return the table of means.

    path: a run directory, None means the weights that are shipped. data_dir: a folder of pairs, default the test list
    of the run. out: CSV with one row a file, default evaluation.csv (evaluation-FOLDER.csv) in the run. The results of
    a finished run get the means: as "test" those of its own list, in "tests" those of other folders.

    Raises:
        SeqattnError: there is no test list, or not a run of speech enhancement.
    """
    if path is None and data_dir is None:
        raise SeqattnError("name the folder of pairs to measure the shipped weights on, with --data-dir")
    run = None if path is None else RunDirectory.open(path)
    network, place = load_network(run, device)
    config = None if run is None else run.read_config(SpeechConfig)
    pairs = _pairs(config, data_dir)
    rows = evaluate_clips(pairs, lambda noisy: network.enhance(noisy.to(place)).cpu(), scale, workers)
    means = summary(rows)
    if run is not None:
        out = out or run.path / ("evaluation.csv" if data_dir is None else f"evaluation-{data_dir.name}.csv")
        _keep(run, means, data_dir)
    if out is not None:
        write_table(out, rows)
    return format_table(means) + _protocol(run, data_dir)


def _pairs(config: SpeechConfig | None, data_dir: Path | None) -> Pairs:
    if data_dir is not None:
        pairs = RecordedPairs(evaluation_pairs(data_dir))
        warn_of_unequal([pairs])
        return pairs
    assert config is not None
    data = data_module(config)
    data.setup("test")
    return data.test_pairs()


def _keep(run: RunDirectory, means: dict, data_dir: Path | None) -> None:
    """Add the means to the results of a finished run."""
    if not run.results.is_file():
        return
    results = run.read_results()
    if data_dir is None:
        results["test"] = means
    else:
        results["tests"] = results.get("tests", {}) | {data_dir.name: means}
    run.write_results(results)


def _protocol(run: RunDirectory | None, data_dir: Path | None) -> str:
    """What the table is of: network, data, and how the network was selected."""
    data = str(data_dir) if data_dir else "the run's own test list"
    if run is None:
        return f"{DEFAULT}, the shipped weights, on {data}\n"
    if not run.results.is_file():
        return f"{run.path}, unfinished, on {data}\n"
    results = run.read_results()
    return f"{run.path} on {data}; {results['protocol']} protocol: {results['selection']}\n"
