"""WERSA attention against its peers: equal outputs first, then time, memory, growth with the length, and what it nears.

python benchmarks/wersa.py [--threads 2] [--repeats 5] [--lengths N ...] [--device cpu|cuda] [--json FILE|FOLDER]
        [--figure FILE.png] [--skip-limits] [--fresh-memory]

One sequence, 4 heads of 64 channels, 128 features, 4 levels. Peers: scaled_dot_product_attention, Performer features
and WERSA itself in plain PyTorch, which keep their features; on a GPU flash-linear-attention's linear attention where
it is installed. A peer that would take longer than --patience seconds or more memory than --memory GiB is not run, and
beyond 64 k tokens a third of the repeats is enough. What a call frees is kept for the next one, whoever's, unless
--fresh-memory is given. Prints nanoseconds per token and head, the slope of time against length, where WERSA overtakes
quadratic attention, and peak memory by the bytes of q, k, v and out.
"""

import argparse
import importlib.util
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from measuring import interleaved_medians, keep_freed_memory, machine, peak_bytes, slope, write_report
from plain_wersa import performer_exp, performer_relu, plain_wersa
from torch import Tensor
from torch.nn import functional as F
from wersa_limits import limits

from seqattn.kernels import wersa_attention
from seqattn.layers.wersa import random_directions

HEADS, DIM, FEATURES, LEVELS = 4, 64, 128, 4
OURS, CAUSAL, QUADRATIC = "WERSA", "WERSA, causal", "scaled_dot_product_attention"
KINDS = {"cpu": torch.float32, "cuda": torch.bfloat16}
CHECKED, TOLERANCE = 1024, 1e-4
LENGTHS = [2**k for k in range(10, 21, 2)]
LEVEL_FROM = 2**12  # from this length on, cost per token must not grow
PROBE = 1024  # tokens from which the seconds of longer sequences are expected
LONG = 2**16  # beyond, a third of the repeats
CONSTANT_BAR, MEMORY_BAR = 0.10, 3.0
BREAK_EVEN_BAR = {"cpu": 2**12, "cuda": 2**14}
PLAIN_BYTES = 40  # features of a token and head that a plain forward + backward keeps, in bytes per feature
Attention = Callable[..., Tensor]


def inputs(length: int, device: str, kind: torch.dtype) -> list[Tensor]:
    """q, k, v, gains."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, length, DIM)] * 3 + [(1, length, LEVELS + 1)]
    return [torch.randn(shape, generator=generator).to(device, kind).requires_grad_() for shape in shapes]


def contestants(device: str, kind: torch.dtype) -> dict[str, Attention]:
    """Functions of q, k, v, gains."""
    normal, proj = directions(device, kind)
    found = {
        OURS: partial(_ours, proj=proj),
        CAUSAL: partial(_ours, proj=proj, causal=True),
        QUADRATIC: lambda q, k, v, gains: F.scaled_dot_product_attention(q, k, v),
        "plain WERSA": lambda q, k, v, gains: plain_wersa(q, k, v, gains, proj, LEVELS),
        "Performer, relu": lambda q, k, v, gains: performer_relu(q, k, v, proj),
        "Performer, exp": lambda q, k, v, gains: performer_exp(q, k, v, normal),
    }
    if device == "cuda" and importlib.util.find_spec("fla"):
        found["flash-linear-attention"] = _fla
    return found


def directions(device: str, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random directions of standard normal entries, and the same scaled as the layer scales them for ReLU."""
    generator = torch.Generator().manual_seed(1)
    normal = random_directions(DIM, FEATURES, orthogonal=False, generator=generator).to(device, kind)
    return normal, normal / math.sqrt(DIM)


def _ours(q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj: Tensor, **options) -> Tensor:
    return wersa_attention(q, k, v, gains, proj, levels=LEVELS, **options)


def _fla(q: Tensor, k: Tensor, v: Tensor, gains: Tensor) -> Tensor:
    from fla.ops.linear_attn import chunk_linear_attn

    return chunk_linear_attn(*(x.transpose(1, 2) for x in (q, k, v)), normalize=False)[0]


def check_equal(device: str) -> None:
    """Output and gradients of all that compute the same agree, in float32, or there is nothing to time.

    Without a filter, all gains 1, ours must be what the Performers are; the causal form, the reference's.
    """
    q, k, v, gains = inputs(CHECKED, device, torch.float32)
    found, ones = contestants(device, torch.float32), torch.ones_like(gains)
    normal, proj = directions(device, torch.float32)
    exponential = partial(_ours, proj=normal, feature_map="exp", bandwidth=q.new_tensor(DIM**0.25))
    pairs = {
        "plain WERSA": (found[OURS], found["plain WERSA"], gains),
        "Performer, relu": (found[OURS], found["Performer, relu"], ones),
        "Performer, exp": (exponential, found["Performer, exp"], ones),
        "the causal reference": (found[CAUSAL], partial(_ours, proj=proj, causal=True, backend="reference"), gains),
    }
    weight = torch.rand_like(q)
    for name, (ours, other, filtered) in pairs.items():
        wanted = [tensor for tensor in (q, k, v, filtered) if tensor.requires_grad]
        results = []
        for attention in (ours, other):
            out = attention(q, k, v, filtered)
            results.append([out.detach(), *torch.autograd.grad((out * weight).sum(), wanted)])
        for got, expected in zip(*results, strict=True):
            error = ((got - expected).abs().max() / expected.abs().max()).item()
            if not error < TOLERANCE:
                raise SystemExit(f"{name} differs from ours by {error:.1e} of the largest entry: nothing to time")


def train(attention: Attention, arguments: list[Tensor]) -> None:
    torch.autograd.grad(attention(*arguments).sum(), arguments, allow_unused=True)


def infer(attention: Attention, arguments: list[Tensor]) -> None:
    with torch.no_grad():
        attention(*arguments)


def measure(device: str, lengths: list[int], repeats: int, patience: float, memory: float) -> list[dict]:
    """One entry a length: seconds of every contestant and part, expected ones where not run, and peak bytes."""
    kind = KINDS[device]
    found, entries = contestants(device, kind), []
    last = {  # part: contestant: the longest sequence that was run, and its seconds
        part: {name: (PROBE, seconds) for name, seconds in interleaved_medians(runs, 1).items()}
        for part, runs in _runs(found, inputs(PROBE, device, kind)).items()
    }
    for length in lengths:
        arguments, entry = inputs(length, device, kind), {"length": length, "seconds": {}, "expected": {}}
        fewer = repeats if length <= LONG else max(1, repeats // 3)
        for part, runs in _runs(found, arguments).items():
            for name in list(runs):
                expected = _expected(name, length, *last[part][name])
                keeps_features = "plain" in name or "Performer" in name
                too_long = expected > patience and name not in (OURS, CAUSAL)
                if too_long or (keeps_features and _plain_gib(length) > memory):
                    entry["expected"][f"{part}: {name}"] = expected
                    del runs[name]
            entry["seconds"][part] = interleaved_medians(runs, fewer)
            last[part] |= {name: (length, seconds) for name, seconds in entry["seconds"][part].items()}
        entry["peak_bytes"] = {name: peak_of(name, length, device) for name in entry["seconds"]["forward + backward"]}
        entry["given_bytes"] = 4 * arguments[0].nbytes  # q, k, v, out
        entries.append(entry)
        print_entry(entry)
    return entries


def _runs(found: dict[str, Attention], arguments: list[Tensor]) -> dict[str, dict[str, Callable[[], None]]]:
    return {
        part: {name: partial(run, attention, arguments) for name, attention in found.items()}
        for part, run in (("forward", infer), ("forward + backward", train))
    }


def _expected(name: str, length: int, known_length: int, seconds: float) -> float:
    """Seconds at a length, from those at another."""
    growth = length / known_length
    return seconds * (growth**2 if name == QUADRATIC else growth)


def peak_of(name: str, length: int, device: str) -> int:
    """Peak bytes of a contestant's forward + backward, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, name, length, device, torch.get_num_threads()).result()


def _peak(name: str, length: int, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    kind = KINDS[device]
    attention, arguments = contestants(device, kind)[name], inputs(length, device, kind)
    return peak_bytes(partial(train, attention, arguments), device)


def _plain_gib(length: int) -> float:
    return PLAIN_BYTES * FEATURES * HEADS * length / 2**30


def summary(entries: list[dict], device: str) -> dict:
    """Slopes, break-even lengths, and the bars."""
    result: dict = {"slopes": {}, "break_even": {}, "bars": []}
    for part in ("forward", "forward + backward"):
        for name in (OURS, CAUSAL):
            rows = [(e["length"], e["seconds"][part][name]) for e in entries if e["length"] >= LEVEL_FROM]
            if len(rows) > 1:
                result["slopes"][f"{part}: {name}"] = slope(*(list(column) for column in zip(*rows, strict=True)))
                costs = [seconds / length for length, seconds in rows]
                growth = max(cost / costs[0] - 1 for cost in costs[1:])  # below 0: fixed costs of the shortest
                text = f"{part}: {name}, cost per token at most 10 % above that at {rows[0][0]:,} tokens"
                result["bars"].append(_bar(text, growth, CONSTANT_BAR))
        ratios = {e["length"]: e["seconds"][part][OURS] / e["seconds"][part].get(QUADRATIC, math.inf) for e in entries}
        result["break_even"][part] = break_even(ratios)
        if ratios.get(at := BREAK_EVEN_BAR[device]):  # 0 where quadratic attention was not run
            text = f"{part}: time at {at:,} tokens by that of {QUADRATIC} < 1"
            result["bars"].append(_bar(text, ratios[at], 1.0))
    for name in (OURS, CAUSAL):
        worst = max(e["peak_bytes"][name] / e["given_bytes"] for e in entries)
        result["bars"].append(_bar(f"{name}: peak memory by the bytes of q, k, v, out <= 3", worst, MEMORY_BAR))
    return result


def break_even(ratios: dict[int, float]) -> int | None:
    """The least length from which on every ratio of times is below 1."""
    slower = max((length for length, ratio in ratios.items() if ratio >= 1), default=0)
    return min((length for length in ratios if length > slower), default=None)


def _bar(text: str, value: float, most: float) -> dict:
    return {"bar": text, "value": value, "met": value <= most}


def print_entry(entry: dict) -> None:
    print(f"\n{entry['length']:,} tokens, {HEADS} heads: ns per token and head, peak bytes by those of q, k, v, out")
    print(f"  {'':28s}{'forward':>26s}{'forward + backward':>26s}{'peak memory':>14s}")
    names = dict.fromkeys([*entry["seconds"]["forward"], *(key.split(": ")[1] for key in entry["expected"])])
    for name in names:
        cells = [f"  {name:28s}"]
        for part, seconds in entry["seconds"].items():
            if name in seconds:
                text = f"{seconds[name] / entry['length'] / HEADS * 1e9:.0f}"
            else:
                text = f"not run: {entry['expected'][f'{part}: {name}']:.0f} s expected"
            cells.append(f"{text:>26s}")
        if name in entry["peak_bytes"]:
            cells.append(f"{entry['peak_bytes'][name] / entry['given_bytes']:13.1f}x")
        print("".join(cells), flush=True)


def draw(report: dict, file: Path) -> None:
    """Time by length of all contestants on logarithmic axes, peak memory, and the distance to the limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    (forward, both), (memory, nearing) = figure.subplots(2, 2)
    entries = report["lengths"]
    names = list(entries[0]["seconds"]["forward"])
    for axes, part in ((forward, "forward"), (both, "forward + backward")):
        for name in names:
            rows = [(e["length"], e["seconds"][part][name]) for e in entries if name in e["seconds"][part]]
            axes.loglog(*zip(*rows, strict=True), marker="o", label=name)
        axes.set(xlabel="tokens", ylabel="s", title=f"{part}, {HEADS} heads of {DIM}, {FEATURES} features")
    for name in names:
        rows = [
            (e["length"], e["peak_bytes"][name] / e["given_bytes"]) for e in entries if name in e["peak_bytes"]
        ]  # fmt: skip
        if rows:
            memory.semilogx(*zip(*rows, strict=True), marker="o", label=name)
    memory.axhline(MEMORY_BAR, color="grey", linestyle=":", label="bar")
    memory.set(xlabel="tokens", ylabel="peak bytes / bytes of q, k, v, out", title="peak memory, forward + backward")
    for name, values in report.get("limits", {"rows": {}})["rows"].items():
        to_its_limit = not name.startswith(("between", "uniform"))
        style = {"marker": "o"} if to_its_limit else {"linestyle": "--"}
        nearing.loglog(report["limits"]["features"], values, **style, label=name)
    nearing.set(xlabel="features", ylabel="mean total variation", title="distances of the weights", ylim=(2e-4, 1))
    for axes in (forward, both, memory, nearing):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--patience", type=float, default=12.0, help="seconds of one call")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of a contestant that keeps its features")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--skip-limits", action="store_true")
    parser.add_argument("--fresh-memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.device == "cpu" and not options.fresh_memory:
        keep_freed_memory()
    report: dict = {
        "machine": machine(options.device), "heads": HEADS, "dim": DIM, "features": FEATURES, "levels": LEVELS,
    }  # fmt: skip
    print(report["machine"])
    check_equal(options.device)
    report["lengths"] = measure(options.device, options.lengths, options.repeats, options.patience, options.memory)
    report |= summary(report["lengths"], options.device)
    print()
    for name, value in report["slopes"].items():
        print(f"{name}: time ~ length^{value:.3f}")
    for part, value in report["break_even"].items():
        print(f"{part}: faster than {QUADRATIC} from {value} tokens on")
    for bar in report["bars"]:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['bar']}: {bar['value']:.2f}")
    if not options.skip_limits:
        report["limits"] = limits()
        for name, values in report["limits"]["rows"].items():
            print(f"{name}: " + " ".join(f"{value:.4f}" for value in values))
    if options.json:
        write_report(report, options.json, "wersa")
    if options.figure:
        draw(report, options.figure)


if __name__ == "__main__":
    main()
