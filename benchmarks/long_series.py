"""Train mamba, lbmamba, attention and WERSA on series of 16 k to 128 k steps; keep one JSON a run.

python benchmarks/long_series.py [--lengths N ...] [--mixers NAME ...] [--seeds N ...] [--epochs N]
        [--limit SECONDS] [--memory GIB] [--results DIR] [--timing]

The task is `long_tasks.order_task`: which of two patterns of 64 steps came first; every series is a new one. One
SequenceClassifier, one budget and, within 2 %, as many parameters for all. Every run has a process of its own, which
may take --limit seconds of a processor and --memory GiB; one that cannot finish its epochs is kept as what it is, with
the seconds an epoch would take. A run whose result is kept already is left out; --timing measures time and memory of
kept runs again, in one epoch each, and leaves the rest as it is: for a machine that has nothing else to do.
`docs/results/long_series.py` makes the page of them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from long_tasks import CHANNELS, order_task
from measuring import machine
from torch.nn import functional as F

from seqattn.models.sequence_classifier import SequenceClassifier

MIXERS: dict[str, dict] = {
    "mamba": {"mixer": "mamba"},
    "lbmamba": {"mixer": "lbmamba", "window": 8},
    "attention": {"mixer": "attention", "positions": "sinusoidal"},
    "wersa": {"mixer": "wersa", "positions": "sinusoidal"},
}
NETWORK = {"d_model": 64, "depth": 2, "patch_size": 32}
TRAIN, TEST, BATCH, RATE = 128, 256, 8, 3e-3  # TRAIN: series of an epoch
TEST_SEED = 10**6  # of the series; those of training have the run's seed


def train(mixer: str, length: int, seed: int, epochs: int, limit: float) -> dict:
    """One run: accuracy on held-out series, seconds an epoch, peak memory."""
    torch.manual_seed(seed)
    model = SequenceClassifier(CHANNELS, 2, **NETWORK, **MIXERS[mixer])
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    steps = epochs * TRAIN // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    before, start, losses, seconds = peak(), time.process_time(), [], []
    while len(losses) < steps and time.process_time() - start < limit:  # not the clock: others may use the machine
        first = len(losses) * BATCH
        x, label = order_task(list(range(first, first + BATCH)), length, seed)
        clock = time.perf_counter()
        loss = F.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - clock)
        losses.append(loss.item())
        if first % TRAIN == 0:
            print(f"{mixer}, {length} steps: epoch {first // TRAIN + 1}/{epochs}, loss {losses[-1]:.3f}", flush=True)
    result = {
        "mixer": mixer, "length": length, "seed": seed, "epochs": len(losses) * BATCH / TRAIN,
        "finished": len(losses) == steps, "limit": limit,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds_per_epoch": statistics.median(seconds) * TRAIN / BATCH, "peak_bytes": peak() - before,
        "threads": torch.get_num_threads(), "machine": machine("cpu"), "network": NETWORK,
    }  # fmt: skip
    if result["finished"]:
        result["accuracy"] = accuracy(model, length)
    return result


@torch.no_grad()
def accuracy(model: SequenceClassifier, length: int) -> float:
    """The part of the held-out series that is classified rightly."""
    model.eval()
    right = 0
    for first in range(0, TEST, BATCH):
        x, label = order_task(list(range(first, first + BATCH)), length, TEST_SEED)
        right += int((model(x).argmax(-1) == label).sum())
    return right / TEST


def peak() -> int:
    """Most bytes that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(mixer: str, length: int, seed: int, options: argparse.Namespace) -> None:
    """A run in a process of its own; its result, or why there is none, is kept."""
    kept = options.results / f"{mixer}-{length}-seed{seed}.json"
    if kept.exists() != options.timing:
        return
    command = [
        sys.executable, __file__, "--one", mixer, str(length), str(seed), "--epochs", str(options.epochs), "--limit",
        str(options.limit), "--memory", str(options.memory), "--results", str(options.results),
        *["--timing"] * options.timing,
    ]  # fmt: skip
    done = subprocess.run(command)
    if done.returncode == 3:
        result = {"mixer": mixer, "length": length, "seed": seed, "finished": False, "out_of_memory": options.memory}
        kept.write_text(json.dumps(result, indent=2) + "\n")
    elif done.returncode:
        sys.exit(f"{mixer} at {length} steps failed")


def one(mixer: str, length: int, seed: int, options: argparse.Namespace) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (options.memory * 2**30,) * 2)
    file = options.results / f"{mixer}-{length}-seed{seed}.json"
    try:
        result = train(mixer, length, seed, 1 if options.timing else options.epochs, options.limit)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            sys.exit(3)
        raise
    if options.timing:
        measured = {name: result[name] for name in ("seconds_per_epoch", "peak_bytes", "machine", "threads")}
        result = json.loads(file.read_text()) | measured
    file.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[2**14, 2**15, 2**16, 2**17])
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), choices=MIXERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--limit", type=float, default=900, help="seconds of a processor for a run")
    parser.add_argument("--memory", type=int, default=8, help="GiB of a run")
    parser.add_argument("--timing", action="store_true", help="measure kept runs again, an epoch of each")
    parser.add_argument("--one", nargs=3, metavar=("MIXER", "LENGTH", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "docs/results/long_series")
    options = parser.parse_args()
    if options.one:
        mixer, length, seed = options.one
        one(mixer, int(length), int(seed), options)
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for length in options.lengths:
            for mixer in options.mixers:
                run(mixer, length, seed, options)


if __name__ == "__main__":
    main()
