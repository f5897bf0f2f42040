"""WERSA attention against its peers: equal outputs first, then time, memory, growth with the length, and what it nears.

python benchmarks/wersa.py [--threads 2] [--repeats 5] [--lengths N ...] [--device cpu|cuda] [--json FILE|FOLDER]
        [--figure FILE.png] [--skip-limits]

One sequence, 4 heads of 64 channels, 128 features, 4 levels. Peers: scaled_dot_product_attention, Performer features
and WERSA itself in plain PyTorch, which keep their features; on a GPU flash-linear-attention's linear attention where
it is installed. A peer that would take longer than --patience seconds or more memory than --memory GiB is not run, and
beyond 64 k tokens a third of the repeats is enough. Prints nanoseconds per token and head, the slope of time against
length, where WERSA overtakes quadratic attention, and peak memory by the bytes of q, k, v and out.
"""

import argparse
import importlib.util
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import interleaved_medians, machine, peak_bytes, write_report
from plain_wersa import performer_exp, performer_relu, plain_wersa
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels import wersa_attention
from seqattn.layers.wersa import random_directions

HEADS, DIM, FEATURES, LEVELS = 4, 64, 128, 4
OURS, CAUSAL, QUADRATIC = "WERSA", "WERSA, causal", "scaled_dot_product_attention"
LENGTHS = [2**k for k in range(10, 21, 2)]
LEVEL_FROM = 2**12  # from this length on, cost per token must be constant
LONG = 2**16  # beyond, a third of the repeats
CONSTANT_BAR, MEMORY_BAR = 0.10, 3.0
BREAK_EVEN_BAR = {"cpu": 2**12, "cuda": 2**14}
PLAIN_BYTES = 40  # features of a token and head that a plain forward + backward keeps, in bytes per feature
Attention = Callable[..., Tensor]


def inputs(length: int, device: str) -> list[Tensor]:
    """q, k, v, gains."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    shapes = [(1, HEADS, length, DIM)] * 3 + [(1, length, LEVELS + 1)]
    return [torch.randn(shape, generator=generator).to(device, kind).requires_grad_() for shape in shapes]


def contestants(device: str) -> dict[str, Attention]:
    """Functions of q, k, v, gains."""
    generator = torch.Generator().manual_seed(1)
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    normal = random_directions(DIM, FEATURES, orthogonal=False, generator=generator).to(device, kind)
    proj = normal / math.sqrt(DIM)
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


def _ours(q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj: Tensor, causal: bool = False) -> Tensor:
    return wersa_attention(q, k, v, gains, proj, levels=LEVELS, causal=causal)


def _fla(q: Tensor, k: Tensor, v: Tensor, gains: Tensor) -> Tensor:
    from fla.ops.linear_attn import chunk_linear_attn

    return chunk_linear_attn(*(x.transpose(1, 2) for x in (q, k, v)), normalize=False)[0]


def check_equal(device: str) -> None:
    """Output and gradients of plain WERSA agree with ours, or there is nothing to time."""
    arguments, found = inputs(1024, device), contestants(device)
    weight = torch.rand_like(arguments[0])
    ours, plain = (
        [out.detach(), *torch.autograd.grad((out * weight).sum(), arguments)]
        for out in (found[name](*arguments) for name in (OURS, "plain WERSA"))
    )
    for got, expected in zip(ours, plain, strict=True):
        error = ((got - expected).abs().max() / expected.abs().max()).item()
        if not error < (1e-4 if device == "cpu" else 3e-2):
            raise SystemExit(f"plain WERSA differs from ours by {error:.1e} of the largest entry: nothing to time")


def train(attention: Attention, arguments: list[Tensor]) -> None:
    torch.autograd.grad(attention(*arguments).sum(), arguments, allow_unused=True)


def infer(attention: Attention, arguments: list[Tensor]) -> None:
    with torch.no_grad():
        attention(*arguments)


def measure(device: str, lengths: list[int], repeats: int, patience: float, memory: float) -> list[dict]:
    """One entry a length: seconds of every contestant and part, expected ones where not run, and peak bytes."""
    found, entries = contestants(device), []
    for length in lengths:
        arguments, entry = inputs(length, device), {"length": length, "seconds": {}, "expected": {}, "peak_bytes": {}}
        for part, run in (("forward", infer), ("forward + backward", train)):
            runs = {}
            for name, attention in found.items():
                expected = _expected(entries, part, name, length)
                keeps_features = "plain" in name or "Performer" in name
                too_long = expected > patience and name not in (OURS, CAUSAL)
                if too_long or (keeps_features and _plain_gib(length) > memory):
                    entry["expected"][f"{part}: {name}"] = expected
                else:
                    runs[name] = partial(run, attention, arguments)
            fewer = repeats if length <= LONG else max(1, repeats // 3)
            entry["seconds"][part] = interleaved_medians(runs, fewer)
        entry["peak_bytes"] = {name: peak_bytes(run, device) for name, run in runs.items()}  # of forward + backward
        entry["given_bytes"] = 4 * arguments[0].nbytes  # q, k, v, out
        entries.append(entry)
        print_entry(entry)
    return entries


def _expected(entries: list[dict], part: str, name: str, length: int) -> float:
    """Seconds at a length, from the length before it."""
    if not entries:
        return 0.0
    last, growth = entries[-1], length / entries[-1]["length"]
    known = last["seconds"][part].get(name, last["expected"].get(f"{part}: {name}", 0.0))
    return known * (growth**2 if name == QUADRATIC else growth)


def _plain_gib(length: int) -> float:
    return PLAIN_BYTES * FEATURES * HEADS * length / 2**30


def slope(lengths: list[int], seconds: list[float]) -> float:
    """Least-squares slope of log(seconds) against log(length)."""
    x, y = (torch.tensor(column, dtype=torch.float64).log() for column in (lengths, seconds))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def summary(entries: list[dict], device: str) -> dict:
    """Slopes, break-even lengths, and the bars."""
    result: dict = {"slopes": {}, "break_even": {}, "bars": []}
    for part in ("forward", "forward + backward"):
        for name in (OURS, CAUSAL):
            rows = [(e["length"], e["seconds"][part][name]) for e in entries if e["length"] >= LEVEL_FROM]
            if len(rows) > 1:
                result["slopes"][f"{part}: {name}"] = slope(*(list(column) for column in zip(*rows, strict=True)))
                costs = [seconds / length for length, seconds in rows]
                # how far the cost of a token rises above that at the shortest length
                worst = max(costs) / costs[0] - 1
                result["bars"].append(
                    _bar(
                        f"{part}: {name}, cost per token from {rows[0][0]:,} tokens on rises <= 10 %",
                        worst,
                        CONSTANT_BAR,
                    )
                )
        faster = [
            e["length"] for e in entries
            if e["seconds"][part].get(QUADRATIC, math.inf) > e["seconds"][part][OURS]
        ]  # fmt: skip
        result["break_even"][part] = min(faster, default=None)
        at = next((e for e in entries if e["length"] == BREAK_EVEN_BAR[device]), None)
        if at is not None:
            ratio = at["seconds"][part][OURS] / at["seconds"][part][QUADRATIC]
            result["bars"].append(
                _bar(f"{part}: time at {at['length']:,} tokens by that of {QUADRATIC} < 1", ratio, 1.0)
            )
    for name in (OURS, CAUSAL):
        worst = max(e["peak_bytes"][name] / e["given_bytes"] for e in entries)
        result["bars"].append(_bar(f"{name}: peak memory by the bytes of q, k, v, out <= 3", worst, MEMORY_BAR))
    return result


def _bar(text: str, value: float, most: float) -> dict:
    return {"bar": text, "value": value, "met": value <= most}


def limits(counts: tuple[int, ...] = (64, 256, 1024, 4096, 16384)) -> dict:
    """Mean total-variation distance of attention weights to their limit, by features; 128 tokens of 64 channels."""
    generator, length, kind = torch.Generator().manual_seed(0), 128, torch.float64
    rows: dict[str, list[float]] = {}
    for spread in (0.25, 1.0):
        q, k = (spread * torch.randn(1, 1, length, DIM, generator=generator, dtype=kind) for _ in range(2))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(DIM))[0, 0]
        cosine = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2))[0, 0].clamp(-1, 1)
        angle, norms = cosine.acos(), k.norm(dim=-1)[0]
        arc = norms * (angle.sin() + (math.pi - angle) * cosine)
        targets = {
            "softmax preset to softmax": scores.softmax(-1),
            "default to arc-cosine": arc / arc.sum(-1, keepdim=True),
            "port to the mean weighted by |k|": (norms / norms.sum()).expand(length, length),
        }
        for count in counts:
            for name, target in targets.items():
                weights = _weights(q, k, name, count, generator)
                rows.setdefault(f"{name}, σ = {spread}", []).append(_distance(weights, target))
                if name != "softmax preset to softmax":
                    of = f"spread between queries, {name.split()[0]}, σ = {spread}"
                    rows.setdefault(of, []).append(_distance(weights, weights.mean(0)))
    return {"features": list(counts), "rows": rows}


def _weights(q: Tensor, k: Tensor, name: str, count: int, generator: torch.Generator) -> Tensor:
    length = q.shape[2]
    exponential = name.startswith("softmax")
    draws = [random_directions(DIM, count, exponential, generator).to(q.dtype) for _ in range(2)]
    scale = 1.0 if exponential else DIM**-0.5
    proj_k = draws[1] * scale if name.startswith("port") else None
    bandwidth = torch.tensor(DIM**0.25, dtype=q.dtype) if exponential else None
    values, gains = torch.eye(length, dtype=q.dtype)[None, None], torch.ones(1, LEVELS + 1, dtype=q.dtype)
    return wersa_attention(
        q, k, values, gains, draws[0] * scale, proj_k, levels=LEVELS, feature_map="exp" if exponential else "relu",
        bandwidth=bandwidth, eps=0.0,
    )[0, 0]  # fmt: skip


def _distance(weights: Tensor, target: Tensor) -> float:
    return ((weights - target).abs().sum(-1) / 2).mean().item()


def print_entry(entry: dict) -> None:
    print(f"\n{entry['length']:,} tokens, {HEADS} heads")
    print(f"  {'':30s}{'forward':>12s}{'forward + backward':>22s}   ns per token and head{'peak memory':>16s}")
    names = dict.fromkeys([*entry["seconds"]["forward"], *(key.split(": ")[1] for key in entry["expected"])])
    for name in names:
        cells = [f"  {name:30s}"]
        for part, width in (("forward", 12), ("forward + backward", 22)):
            seconds = entry["seconds"][part].get(name)
            text = "not run" if seconds is None else f"{seconds / entry['length'] / HEADS * 1e9:.0f}"
            cells.append(f"{text:>{width}s}")
        if name in entry["peak_bytes"]:
            cells.append(f"{entry['peak_bytes'][name] / entry['given_bytes']:37.1f}x")
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
        if not name.startswith("spread"):
            nearing.loglog(report["limits"]["features"], values, marker="o", label=name)
    nearing.set(xlabel="features", ylabel="mean total variation", title="distance of the weights to their limit")
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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
