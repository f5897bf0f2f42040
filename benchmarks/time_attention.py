"""Time attention against its published formulation: equal averages and gradients first, then time and peak memory.

python benchmarks/time_attention.py [--repeats 7] [--threads 1] [--device cpu|cuda] [--json FILE|FOLDER]

The published module attends to the mask as it attends to the values, which doubles its work; that half, a flag whether
a channel was ever observed, is left out here. With --device cuda both run on the GPU; given a folder, --json adds to
the file of the machine there.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from measuring import interleaved_medians, machine, peak_bytes, write_report
from plain_time_attention import plain_time_attention
from torch import Tensor

from seqattn.kernels import time_attention

QUERIES, HEADS, DIM, CHANNELS, OBSERVED = 48, 8, 8, 17, 0.25
CASES: dict[str, dict] = {
    "200 observations": {"lengths": [200] * 8, "spread": 1},
    "1 to 1,000 observations": {"lengths": [1000, 700, 400, 200, 100, 50, 10, 1], "spread": 1},
    "200 observations, scores of hundreds": {"lengths": [200] * 8, "spread": 100},
}
BARS = {"forward": 40.0, "forward + backward": 30.0}
BARRED = "200 observations"
TOLERANCES = {"out": 1e-5, "query": 1e-4, "key": 1e-4, "values": 1e-4}
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
CONTESTANTS: dict[str, Attention] = {"plain": plain_time_attention, "ours": time_attention}


def inputs(case: dict, device: str) -> list[Tensor]:
    """query, key, values, mask; scores are multiples of 1/8, exact, times 1/√dim."""
    generator = torch.Generator().manual_seed(0)
    batch, length = len(case["lengths"]), max(case["lengths"])
    query, key = (
        torch.randint(-8, 9, shape, generator=generator) / 8
        for shape in ((QUERIES, HEADS, DIM), (batch, length, HEADS, DIM))
    )
    mask = torch.rand(batch, length, CHANNELS, generator=generator) < OBSERVED
    mask &= (torch.arange(length) < torch.tensor(case["lengths"])[:, None])[..., None]
    values = torch.randn(mask.shape, generator=generator) * mask
    leaves = [case["spread"] * query, key, values]
    return [*(tensor.to(device).requires_grad_() for tensor in leaves), mask.to(device)]


def infer(attention: Attention, arguments: list[Tensor]) -> None:
    with torch.no_grad():
        attention(*arguments)


def train(attention: Attention, arguments: list[Tensor]) -> None:
    torch.autograd.grad(attention(*arguments).sum(), arguments[:3])


def check_equal(arguments: list[Tensor]) -> float:
    """Averages and gradients agree, or there is nothing to time; returns the largest difference of averages."""
    results = []
    for attention in CONTESTANTS.values():
        out = attention(*arguments)
        gradients = torch.autograd.grad(out.square().sum(), arguments[:3])
        # published code has gradients of values that were never observed
        results.append([out.detach(), *gradients[:2], gradients[2] * arguments[3]])
    errors = {
        name: ((got - expected).abs().max() / expected.abs().max()).item()
        for name, expected, got in zip(TOLERANCES, *results, strict=True)
    }
    for name, error in errors.items():
        if not error < TOLERANCES[name]:
            raise SystemExit(f"{name} differs by {error:.1e} of the largest entry: nothing to time")
    return errors["out"]


def compare(case: dict, repeats: int, device: str) -> dict:
    arguments = inputs(case, device)
    result: dict = {"difference": check_equal(arguments)}
    for part, run in (("forward", infer), ("forward + backward", train)):
        runs = {name: partial(run, attention, arguments) for name, attention in CONTESTANTS.items()}
        seconds = interleaved_medians(runs, repeats)
        result[part] = seconds | {"ratio": seconds["plain"] / seconds["ours"]}
    result["peak_bytes"] = {name: peak_of(name, case, device) for name in CONTESTANTS}
    return result


def peak_of(name: str, case: dict, device: str) -> int:
    """Peak bytes of a contestant's forward + backward, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, name, case, device, torch.get_num_threads()).result()


def _peak(name: str, case: dict, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    return peak_bytes(partial(train, CONTESTANTS[name], inputs(case, device)), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict = {
        "machine": machine(options.device), "queries": QUERIES, "heads": HEADS, "dim": DIM, "channels": CHANNELS,
        "observed": OBSERVED, "cases": {},
    }  # fmt: skip
    print(report["machine"])
    for name, case in CASES.items():
        result = compare(case, options.repeats, options.device)
        report["cases"][name] = case | result
        print(f"batch {len(case['lengths'])}, {name}: averages equal within {result['difference']:.1e} of the largest")
        for part, bar in BARS.items():
            seconds, goal = result[part], f" (bar {bar:.0f})" if name == BARRED else ""
            print(
                f"  {part:20s} plain {1e3 * seconds['plain']:.1f} ms  ours {1e3 * seconds['ours']:.2f} ms  "
                f"{seconds['ratio']:.1f}x{goal}"
            )
        peaks = {contestant: peak / 2**20 for contestant, peak in result["peak_bytes"].items()}
        print(f"  {'peak memory':20s} plain {peaks['plain']:.0f} MiB  ours {peaks['ours']:.1f} MiB", flush=True)
    if options.json:
        write_report(report, options.json, "time_attention")


if __name__ == "__main__":
    main()
