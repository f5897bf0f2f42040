"""Write mixers.md from the kept results.json files: python docs/results/mixers.py [--check]."""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE, NOTES = HERE / "mixers", HERE / "mixers.md", HERE / "mixers-notes.md"
MEMORY = HERE / "mixers-memory.json"
MIXERS = {
    "mamba": "Mamba (window 1)",
    "lbmamba-8": "LBMamba, window 8",
    "lbmamba-full": "LBMamba, full window",
    "attention": "attention",
    "wersa": "WERSA",
}
COMPARED = (
    ("lbmamba-8", "mamba"), ("lbmamba-full", "mamba"), ("lbmamba-8", "attention"), ("wersa", "attention"),
    ("wersa", "mamba"),
)  # fmt: skip
Runs = dict[str, dict[str, list[dict[str, Any]]]]  # dataset -> mixer -> one result a seed


def read_runs() -> Runs:
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        mixer = file.stem.removesuffix(f"-{result['dataset']}-seed{result['seed']}")
        runs[result["dataset"]][mixer].append(result)
    return runs


def accuracy(runs: list[dict[str, Any]]) -> float:
    return 100 * statistics.fmean(run["test"]["accuracy"] for run in runs)


def accuracy_cell(runs: list[dict[str, Any]]) -> str:
    if len(runs) == 1:
        return f"{accuracy(runs):.1f}"
    return f"{accuracy(runs):.1f} ± {100 * statistics.stdev(run['test']['accuracy'] for run in runs):.1f}"


def seconds_cell(runs: list[dict[str, Any]]) -> str:
    return f"{statistics.median(run['seconds_per_epoch'] for run in runs):.2f}"


def parameters_cell(runs: list[dict[str, Any]]) -> str:
    return f"{runs[0]['parameters']:,}"


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(runs: Runs, cell: Callable[[list[dict[str, Any]]], str]) -> list[str]:
    lines = [line(["dataset", *MIXERS.values()]), "|" + "---|" * (1 + len(MIXERS))]
    for dataset, mixers in runs.items():
        lines.append(line([dataset, *(cell(mixers[name]) if mixers[name] else "–" for name in MIXERS)]))
    return lines


def ranks(values: list[float]) -> list[float]:
    """1 for the largest; equal values share the mean of their ranks."""
    return [sum(other > value for other in values) + (1 + values.count(value)) / 2 for value in values]


def mean_rank_line(complete: list[dict[str, list[dict[str, Any]]]]) -> str:
    of_sets = [ranks([accuracy(mixers[name]) for name in MIXERS]) for mixers in complete]
    means = (statistics.fmean(column) for column in zip(*of_sets, strict=True))
    return line(["mean rank", *(f"{mean:.2f}" for mean in means)])


def comparison(complete: list[dict[str, list[dict[str, Any]]]], name: str, against: str) -> str:
    """What one mixer gains on another, in words that follow from the numbers."""
    gains = [accuracy(mixers[name]) - accuracy(mixers[against]) for mixers in complete]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    mean = statistics.fmean(gains)
    text = (
        f"- {MIXERS[name]} against {MIXERS[against]}: {mean:+.1f} points in the mean over {len(gains)} sets, better on "
        f"{better}, worse on {worse}"
    )
    if len(gains) < 2:
        return f"{text}."
    error = statistics.stdev(gains) / len(gains) ** 0.5
    verdict = "more" if abs(mean) > 2 * error else "no more"
    return f"{text}. That is {verdict} than twice its standard error over the sets ({error:.1f} points)."


def differences(results: list[dict[str, Any]]) -> str:
    """What was changed for single data sets, the same for every mixer."""
    changes = {
        f"{result['dataset']}: {override}"
        for result in results
        for override in result["overrides"]
        if not override.startswith("model.window")
    }
    return "; ".join(sorted(changes)) or "nothing"


def memory_table() -> list[str]:
    """MiB of a training step, from benchmarks/mixer_memory.py."""
    rows = json.loads(MEMORY.read_text())["rows"]
    cells = {(row["dataset"], row["mixer"]): f"{row['peak_bytes'] / 2**20:,.0f}" for row in rows}
    lines = [line(["dataset", "steps", *MIXERS.values()]), "|" + "---|" * (2 + len(MIXERS))]
    for dataset, steps in dict.fromkeys((row["dataset"], row["steps"]) for row in rows):
        lines.append(line([dataset, f"{steps:,}", *(cells[dataset, name] for name in MIXERS)]))
    return lines


def page() -> str:
    runs = read_runs()
    results = [result for mixers in runs.values() for seeds in mixers.values() for result in seeds]
    if not results:
        sys.exit(f"{RESULTS} holds no results: run benchmarks/sequence_mixers.py first")
    complete = [mixers for mixers in runs.values() if all(mixers[name] for name in MIXERS)]
    seeds, threads = (", ".join(sorted({str(result[key]) for result in results})) for key in ("seed", "threads"))
    lines = [
        "# Mamba, LBMamba, attention and WERSA on UEA sets",
        "",
        "Generated by `docs/results/mixers.py` from the `results.json` files in `docs/results/mixers/`, which",
        "`benchmarks/sequence_mixers.py` trains: `SequenceClassifier` with one backbone, one budget and, within 2 %,",
        "as many parameters; protocol `holdout` (the epoch is selected on a part of TRAIN, by k-fold where TRAIN has",
        f"fewer than 100 cases; TEST is used once). Seeds: {seeds}. CPU threads: {threads}. Changed for single sets:",
        f"{differences(results)}.",
        "",
        "## Test accuracy in %, mean ± standard deviation over seeds",
        "",
        *table(runs, accuracy_cell),
    ]
    if complete:
        lines += [mean_rank_line(complete), "", "## Against each other", ""]
        lines += [comparison(complete, *pair) for pair in COMPARED]
    lines += ["", "## Seconds an epoch, training and validation, median", "", *table(runs, seconds_cell), ""]
    lines += ["## Peak memory of a training step on the longest sets, MiB beside the program", "", *memory_table(), ""]
    lines += ["## Parameters", "", *table(runs, parameters_cell), ""]
    if NOTES.exists():
        lines += [NOTES.read_text().strip(), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if mixers.md is not what would be written")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
