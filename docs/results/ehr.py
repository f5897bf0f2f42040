"""Write ehr.md from the JSON files that benchmarks/ehr.py leaves: python docs/results/ehr.py [--check]."""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE, NOTES = HERE / "ehr", HERE / "ehr.md", HERE / "ehr-notes.md"
DATASETS = {
    "physionet2012-challenge": "PhysioNet Challenge 2012, mortality, split `challenge` (sets a, b, c)",
    "physionet2012-random": "PhysioNet Challenge 2012, mortality, split `random` (80/10/10, drawn by the seed)",
    "physionet2019": "PhysioNet Challenge 2019, sepsis after hour 12",
    "synthetic": "Generated patients whose label needs series and notes",
}
LITERATURE = {
    "physionet2012-challenge": (
        "In the literature: mTAND ([arXiv:2101.10318](https://arxiv.org/abs/2101.10318)) reports an AUROC of about "
        "0.85 for mortality on this data set, in a split of its own."
    )
}
MODELS = {
    "ours": "UTDE (series)",
    "no-time-attention": "UTDE without time attention",
    "published-fill": "UTDE with the published fill",
    "notes": "notes only",
    "fusion": "series and notes, interleaved",
    "gru-d": "GRU-D",
    "logistic-regression": "logistic regression, hourly features",
}
MEASURES = {
    "auroc": "AUROC", "auprc": "AUPRC", "average_precision": "average precision", "f1": "F1 at 0.5",
    "f1_at_threshold": "F1 at the validation threshold", "brier": "Brier", "ece": "ECE",
}  # fmt: skip
TARGETS = {"auroc": 0.86, "auprc": 0.53}  # on PhysioNet 2012, of our configuration
SECONDS_ALLOWED = 900
Runs = dict[str, dict[str, list[dict[str, Any]]]]  # data set -> model -> one result a seed


def read_runs() -> Runs:
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        runs[result["dataset"]][result["model"]].append(result)
    return runs


def mean(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.fmean(run["test"][name] for run in runs)


def cell(runs: list[dict[str, Any]], name: str) -> str:
    values = [run["test"][name] for run in runs]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(models: dict[str, list[dict[str, Any]]]) -> list[str]:
    header = ["model", "seeds", *MEASURES.values(), "seconds of training", "parameters"]
    lines = [line(header), "|" + "---|" * len(header)]
    for name, title in MODELS.items():
        if runs := models.get(name):
            seconds = statistics.fmean(run["seconds"] for run in runs)
            cells = [cell(runs, measure) for measure in MEASURES]
            lines.append(line([title, str(len(runs)), *cells, f"{seconds:.0f}", f"{runs[0]['parameters']:,}"]))
    return lines


def stays(models: dict[str, list[dict[str, Any]]]) -> str:
    """Sizes of the parts, positive test stays, and what was left out, of one run; they vary with a random split."""
    run = next(iter(models.values()))[0]
    parts = ", ".join(f"{count:,} {name}" for name, count in run["stays"].items())
    left_out = "; ".join(f"{count:,} {phrase}" for phrase, count in run["left_out"].items()) or "nothing"
    return f"Stays: {parts} ({run['test']['positive']:,} positive). Left out, cut or clipped: {left_out}."


def comparisons(models: dict[str, list[dict[str, Any]]]) -> list[str]:
    """How the configuration named first of the fusions or UTDE stands to each other model, in test AUROC and AUPRC."""
    ours = "fusion" if models.get("fusion") else "ours"
    if not models.get(ours):
        return []
    found = []
    for name, title in MODELS.items():
        if name != ours and models.get(name):
            gains = [mean(models[ours], measure) - mean(models[name], measure) for measure in TARGETS]
            found.append(f"{title} ({gains[0]:+.3f}, {gains[1]:+.3f})")
    return [f"{MODELS[ours]} against, in AUROC and AUPRC: {', '.join(found)}."] if found else []


def target(models: dict[str, list[dict[str, Any]]]) -> list[str]:
    runs = models.get("ours")
    if not runs:
        return []
    seconds = max(run["seconds"] for run in runs)
    missing = {name: wanted - mean(runs, name) for name, wanted in TARGETS.items()}
    parts = [
        f"{MEASURES[name]} {TARGETS[name]:.2f} is {'met' if short <= 0 else f'missed by {short:.3f}'}"
        for name, short in missing.items()
    ]
    time = f"the longest training took {seconds:.0f} s of {SECONDS_ALLOWED} s allowed"
    return [f"Target of {MODELS['ours']}: {', '.join(parts)}; {time}."]


def page() -> str:
    runs = read_runs()
    if not runs:
        sys.exit(f"{RESULTS} holds no results: run benchmarks/ehr.py first")
    results = [result for models in runs.values() for seeds in models.values() for result in seeds]
    machines = "; ".join(sorted({result["machine"] for result in results}))
    lines = [
        "# Prediction from irregular health records",
        "",
        "Generated by `docs/results/ehr.py` from the files in `docs/results/ehr/`, which `benchmarks/ehr.py` writes",
        "with the command's own code. The epoch (of the logistic regression: its strength) with the highest AUPRC on",
        "validation stays is chosen and TEST used once. Mean ± standard deviation over seeds; AUPRC is the trapezoid",
        f"area, average precision its step-wise form. Machine: {machines}.",
    ]
    for dataset, title in DATASETS.items():
        if models := runs.get(dataset):
            lines += ["", f"## {title}", "", *table(models), "", stays(models), *comparisons(models)]
            lines += target(models) if dataset.startswith("physionet2012") else []
            lines += ["", LITERATURE[dataset]] if dataset in LITERATURE else []
    lines.append("")
    if NOTES.exists():
        lines += [NOTES.read_text().strip(), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if ehr.md is not what would be written")
    if parser.parse_args().check:
        sys.exit(not PAGE.exists() or PAGE.read_text() != page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
