"""Train Mamba, LBMamba, attention and WERSA on sets of the archive with one budget; keep each results.json.

python benchmarks/sequence_mixers.py [--data-dir DIR] [--seeds 0 1 2] [--datasets NAME ...] [--mixers NAME ...]
        [--set KEY=VALUE] [--runs DIR] [--results DIR]

Protocol holdout; depth, width, optimizer, epochs and data are the same for all, and so are the parameters within 2 %.
A run whose result is already kept is left out, so the command can be repeated until all are there.
`docs/results/mixers.py` makes the page of them. For its seconds an epoch, run nothing beside.
"""

import argparse
from pathlib import Path

from classification import train

# window 1 is Mamba itself
MIXERS: dict[str, tuple[str, list[str]]] = {
    "mamba": ("mamba", []),
    "lbmamba-8": ("lbmamba", ["model.window=8"]),
    "lbmamba-full": ("lbmamba", ["model.window=full"]),
    "attention": ("attention", []),
    "wersa": ("wersa", []),
}
# from the fastest to the slowest; what differs from the configuration, so that an epoch takes seconds on 2 cores
DATASETS: dict[str, list[str]] = {
    "Libras": [],
    "RacketSports": [],
    "NATOPS": [],
    "JapaneseVowels": [],
    "BasicMotions": [],
    "Handwriting": [],
    "FingerMovements": [],
    "UWaveGestureLibrary": [],
    "ArticularyWordRecognition": [],
    "PenDigits": ["data.batch_size=128", "trainer.max_epochs=20"],
    "StandWalkJump": ["model.patch_size=8"],
    "ACSF1": ["model.patch_size=8"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="default: where `seqattn train` looks, sktime's sets included")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), choices=MIXERS)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs/mixers"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "mixers")
    options = parser.parse_args()
    for seed in options.seeds:
        for dataset in options.datasets:
            for mixer in options.mixers:
                config, overrides = MIXERS[mixer]
                arguments = ["--config", config, "--dataset", dataset]
                arguments += ["--data-dir", options.data_dir] if options.data_dir else []
                kept = options.results / f"{mixer}-{dataset}-seed{seed}.json"
                overrides = [*overrides, *DATASETS.get(dataset, []), *options.overrides]
                train([*arguments, "--seed", str(seed)], overrides, options.runs, kept)


if __name__ == "__main__":
    main()
