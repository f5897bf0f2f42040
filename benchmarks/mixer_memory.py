"""Peak memory of a training step of every mixer on the longest sets.

python benchmarks/mixer_memory.py [--data-dir DIR] [--datasets NAME ...] [--json FILE]

Networks, batches and options are those of benchmarks/sequence_mixers.py; each in a process of its own, the second step
on the first training batch. `docs/results/mixers.py` has a table of it.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from measuring import machine, peak_bytes
from sequence_mixers import DATASETS, MIXERS

from seqattn.data.uea import UEADataModule
from seqattn.experiment.classification import build_module
from seqattn.experiment.config import ClassificationConfig
from seqattn.experiment.loading import load_config

LONGEST = ["StandWalkJump", "UWaveGestureLibrary", "Handwriting", "ArticularyWordRecognition", "BasicMotions"]


def measure(dataset: str, mixer: str, data_dir: str | None) -> dict:
    """What a set's series are, and the bytes that a step adds."""
    torch.set_num_threads(1)
    name, overrides = MIXERS[mixer]
    overrides = [f"data.dataset={dataset}", *overrides, *DATASETS[dataset]]
    overrides += [f"data.data_dir={data_dir}"] if data_dir else []
    config = load_config(ClassificationConfig, name, overrides, "classification")
    data = UEADataModule(dataset, config.data.data_dir, batch_size=config.data.batch_size)
    data.setup()
    module, batch = build_module(config, data).train(), next(iter(data.train_dataloader()))

    def step() -> None:
        module.zero_grad()
        module.training_step(batch, 0).backward()

    peak = peak_bytes(step, "cpu")
    return {"dataset": dataset, "mixer": mixer, "steps": data.seq_len, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="default: where `seqattn train` looks, sktime's sets included")
    parser.add_argument("--datasets", nargs="+", default=LONGEST)
    results = Path(__file__).parents[1] / "docs" / "results"
    parser.add_argument("--json", type=Path, default=results / "mixers-memory.json")
    options = parser.parse_args()
    rows = []
    for dataset in options.datasets:
        for mixer in MIXERS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows.append(pool.submit(measure, dataset, mixer, options.data_dir).result())
            print(f"{dataset}, {mixer}: {rows[-1]['peak_bytes'] / 2**20:.0f} MiB", flush=True)
    options.json.write_text(json.dumps({"machine": machine("cpu"), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
