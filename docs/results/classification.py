"""Write classification.md from the kept results.json files: python docs/results/classification.py [--check]."""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "classification.md"
Runs = dict[tuple[str, str, str], list[dict[str, Any]]]  # (config, dataset, protocol) -> one result a seed


def read_runs() -> Runs:
    runs: Runs = defaultdict(list)
    for file in sorted((HERE / "classification").glob("*.json")):
        result = json.loads(file.read_text())
        runs[result["config"], result["dataset"], result["protocol"]].append(result)
    return runs


def mean_and_spread(values: list[float]) -> str:
    """Percent, with the standard deviation over seeds where there are several."""
    mean = 100 * statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.1f} (1 seed)"
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f} ({len(values)} seeds)"


def accuracy(runs: list[dict[str, Any]] | None) -> str:
    return mean_and_spread([run["test"]["accuracy"] for run in runs]) if runs else "–"


def row(dataset: str, config: str, runs: Runs, published: dict[str, Any]) -> str:
    holdout, paper = (runs.get((config, dataset, protocol)) for protocol in ("holdout", "paper"))
    any_runs = (paper or []) + (holdout or [])
    last = mean_and_spread([run["last_epoch_accuracy"] for run in paper]) if paper else "–"
    gap = "–"
    if paper:
        points = 100 * statistics.fmean(run["test"]["accuracy"] for run in paper) - published["mptsnet"]
        gap = f"{points:+.1f}"
    seconds = statistics.median(run["seconds_per_epoch"] for run in any_runs)
    cells = [
        dataset, f"{published['test_cases']}", accuracy(holdout), accuracy(paper), last, f"{published['mptsnet']:.1f}",
        gap, f"{published['best_baseline']:.1f} ({published['baseline']})",
        f"{any_runs[0]['parameters'] / 1e6:.1f} M", f"{seconds:.1f}", str(max(run["epochs"] for run in any_runs)),
        ", ".join(any_runs[0]["overrides"]) or "–",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def table(config: str, runs: Runs, published: dict[str, Any]) -> list[str]:
    header = [
        "dataset", "test cases", "holdout", "paper", "paper, last epoch", "published", "paper − published",
        "best baseline", "parameters", "s/epoch", "epochs", "overrides",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    datasets = sorted({dataset for name, dataset, _ in runs if name == config})
    return lines + [row(dataset, config, runs, published["datasets"][dataset]) for dataset in datasets]


def shortfalls(config: str, runs: Runs, published: dict[str, Any]) -> list[str]:
    """The sets 3 points or more below the published figure under `paper`, beside that figure's standard error."""
    lines = []
    for name, dataset, protocol in sorted(runs):
        if (name, protocol) != (config, "paper"):
            continue
        figures = published["datasets"][dataset]
        share, cases = figures["mptsnet"] / 100, figures["test_cases"]
        points = 100 * (statistics.fmean(run["test"]["accuracy"] for run in runs[name, dataset, protocol]) - share)
        if round(points, 1) <= -3:
            error = 100 * math.sqrt(share * (1 - share) / cases)
            lines.append(
                f"- {dataset}: {points:+.1f} points, {abs(points) * cases / 100:.1f} of {cases} test cases; "
                f"the published figure has a standard error of {error:.1f} points over {cases} cases."
            )
    return ["3 points or more below the published figure under `paper`:", "", *(lines or ["- none."]), ""]


def ablations(published: dict[str, Any]) -> list[str]:
    """The runs that change one thing, beside the unchanged one."""
    files = sorted((HERE / "classification" / "ablations").glob("*.json"))
    if not files:
        return []
    lines = [
        "## What changes with the configuration",
        "",
        "| configuration | dataset | protocol | seed | changed | accuracy | last epoch | published | parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for file in files:
        run = json.loads(file.read_text())
        last = f"{100 * run['last_epoch_accuracy']:.1f}" if "last_epoch_accuracy" in run else "–"
        figures = published["datasets"][run["dataset"]]["mptsnet"]
        changed = ", ".join(run["overrides"])
        lines.append(
            f"| `{run['config']}` | {run['dataset']} | {run['protocol']} | {run['seed']} | {changed} "
            f"| {100 * run['test']['accuracy']:.1f} | {last} | {figures:.1f} | {run['parameters'] / 1e6:.1f} M |"
        )
    return [*lines, ""]


def page() -> str:
    runs = read_runs()
    published = json.loads((HERE / "published_classification.json").read_text())
    notes = (HERE / "classification-notes.md").read_text().strip()
    lines = [
        "# Time-series classification: results",
        "",
        "Generated by `docs/results/classification.py` from the `results.json` files in",
        "`docs/results/classification/`, which `benchmarks/classification.py` trains. Test accuracy in %, mean ±",
        "standard deviation over seeds.",
        "",
        "- **holdout**: the epoch is selected on a stratified part of TRAIN (k-fold where TRAIN has fewer than 100",
        "  cases); TEST is used once.",
        "- **paper**: all of TRAIN trains and the best *test* epoch is reported, as the publication does: optimistic",
        "  by construction. The column after it is the same run at its last epoch.",
        f"- **published** and **best baseline**: {published['source']}.",
        "",
    ]
    for config in sorted({config for config, _, _ in runs}):
        lines += [f"## Configuration `{config}`", "", *table(config, runs, published), ""]
        lines += shortfalls(config, runs, published)
    return "\n".join([*lines, *ablations(published), notes, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if classification.md is not what would be written")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
