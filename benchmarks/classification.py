"""Train the UEA sets of a data folder under both protocols and keep each run's results.json for the table.

python benchmarks/classification.py --data-dir DIR [--config mptsnet] [--protocols holdout paper] [--seeds 0 1 2]
        [--datasets NAME ...] [--runs DIR]

With --ablation NAME, and what it changes as --set KEY=VALUE, the results are kept apart, for the page's second table.
A run whose result is already kept is left out, so the command can be repeated until all are there.
`docs/results/classification.py` makes the table of them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "classification"

# from the fastest to the slowest; what differs from the configuration, so that a run ends within 20 minutes on 2 cores
DATASETS: dict[str, list[str]] = {
    "RacketSports": [],
    "BasicMotions": [],
    "Libras": [],
    "JapaneseVowels": [],
    "NATOPS": [],
    "FingerMovements": [],
    "Handwriting": [],
    "UWaveGestureLibrary": [],
    "ArticularyWordRecognition": [],
    "PenDigits": ["data.batch_size=128", "trainer.max_epochs=15"],
    "StandWalkJump": ["trainer.max_epochs=12"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--config", default="mptsnet")
    parser.add_argument("--protocols", nargs="+", default=["holdout", "paper"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ablation", default="")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    options = parser.parse_args()
    for seed in options.seeds:
        for dataset in options.datasets:
            for protocol in options.protocols:
                folder = RESULTS / "ablations" if options.ablation else RESULTS
                name = "-".join(filter(None, [options.config, dataset, protocol, options.ablation, f"seed{seed}"]))
                kept = folder / f"{name}.json"
                arguments = ["--config", options.config, "--dataset", dataset, "--data-dir", options.data_dir]
                arguments += ["--protocol", protocol, "--seed", str(seed)]
                train(arguments, [*DATASETS.get(dataset, []), *options.overrides], options.runs, kept)


def train(arguments: list[str], overrides: list[str], runs: Path, kept: Path) -> None:
    """Train below `runs` and keep the results with their overrides, unless `kept` holds them already."""
    if kept.exists():
        return
    run = runs / kept.stem
    command = ["seqattn", "train", "classification", *arguments, "--out", str(run)]
    command += [part for override in overrides for part in ("--set", override)]
    print(" ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{kept.stem} failed")
    results = json.loads((run / "results.json").read_text())
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({**results, "overrides": overrides}, indent=2) + "\n")


if __name__ == "__main__":
    main()
