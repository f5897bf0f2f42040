"""Time and memory that long tables of a million events take, from the file to batches that a model could take.

python benchmarks/clinical_loading.py [--events N] [--stays N] [--variables N]

The table is random, unsorted, and written as CSV and, where pyarrow is installed, as parquet. Each reading has a
process of its own, so its peak is its own; the imports' share is printed beside it. The bars are 20 s and 2 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import machine

SECONDS, BYTES = 20.0, 2e9


def write_tables(folder: Path, suffix: str, events: int, stays: int, variables: int) -> None:
    """Write events and labels of random stays, in random order."""
    random = np.random.default_rng(0)
    names = np.array([f"variable {number:02d}" for number in range(variables)])
    table = pd.DataFrame({
        "id": random.integers(0, stays, events), "time": random.uniform(0, 48, events).round(3),
        "variable": names[random.integers(0, variables, events)], "value": random.standard_normal(events).round(4),
    })  # fmt: skip
    labels = pd.DataFrame({"id": np.arange(stays), "death": random.integers(0, 2, stays)})
    for name, data in (("events", table), ("labels", labels)):
        if suffix == "csv":
            data.to_csv(folder / f"{name}.csv", index=False)
        else:
            data.to_parquet(folder / f"{name}.parquet", index=False)


def peak() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(folder: str) -> dict:
    """Read, split, scale, and fetch one batch; for a process of its own."""
    from seqattn.data.clinical.long_tables import read_long_tables
    from seqattn.data.clinical.module import ClinicalDataModule

    before, start = peak(), time.perf_counter()
    events = len(read_long_tables(folder).times)
    read, read_peak, start = time.perf_counter() - start, peak(), time.perf_counter()
    data = ClinicalDataModule(folder)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    return {
        "events": events, "read_seconds": read, "read_bytes": read_peak, "setup_seconds": time.perf_counter() - start,
        "bytes": peak(), "import_bytes": before, "batch": list(batch["values"].shape),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--stays", type=int, default=10_000)
    parser.add_argument("--variables", type=int, default=40)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.load)))
        return
    print(machine("cpu"))
    missed = False
    for suffix in ("csv", *(["parquet"] if find_spec("pyarrow") else [])):
        with tempfile.TemporaryDirectory() as folder:
            write_tables(Path(folder), suffix, options.events, options.stays, options.variables)
            done = subprocess.run(
                [sys.executable, __file__, "--load", folder], capture_output=True, text=True, check=True
            )
        found = json.loads(done.stdout.splitlines()[-1])
        missed |= found["read_seconds"] > SECONDS or found["bytes"] > BYTES
        print(
            f"{suffix}: {found['events']:,} events read in {found['read_seconds']:.2f} s (bar {SECONDS:.0f}); read, "
            f"scaled and batched in {found['setup_seconds']:.2f} s, peak {found['bytes'] / 1e9:.2f} GB (bar "
            f"{BYTES / 1e9:.0f}), of which imports {found['import_bytes'] / 1e9:.2f}; a batch is {found['batch']}"
        )
    sys.exit(missed)


if __name__ == "__main__":
    main()
