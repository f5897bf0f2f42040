"""The selective scan against its peers: equal outputs first, then time, memory, and growth with the length.

python benchmarks/selective_scan.py [--threads 2] [--repeats 7] [--device cpu|cuda] [--json FILE|FOLDER]
        [--figure FILE.png] [--skip-growth]

An element is one (batch, length, channel, state). CPU peers: mambapy's parallel scan, a loop over `unbind`, the
formulation of mamba-ssm's reference. GPU peers: mamba-ssm's CUDA scan where it is installed, and two global scans with
flips. Prints nanoseconds and bytes per element beside their floor; given a folder, --json adds to the machine's file.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import interleaved_medians, machine, peak_bytes, slope, synchronize, write_report
from plain_selective_scan import (
    mamba_ssm_scan,
    mambapy_pscan,
    published_reference,
    two_scans_and_flips,
    unbind_loop,
)
from torch import Tensor

from seqattn.kernels import selective_scan

Scan = Callable[..., Tensor]
SHAPES = {
    "cpu": [(2, 512, 256, 16), (16, 256, 128, 16), (1, 4096, 256, 16)],
    "cuda": [(800, 256, 321, 16), (2568, 256, 100, 16), (8, 4096, 1536, 16)],  # (batch, length, channels, state)
}
WINDOW = 8
# (part, peer): least ratio of the peer's time to ours, performance.md
BARS = {
    ("forward", "mambapy"): 25,
    ("forward", "unbind"): 8,
    ("forward + backward", "mambapy"): 15,
    ("forward + backward", "unbind"): 8,
}
WINDOW_BAR = 1.25  # most time of the windowed scan, by the plain one's
MEMORY_BAR = 6  # most bytes of forward + backward, by those of u, delta, B and C
SLOW_LENGTH = 512
FROM = 2**14  # slopes: before, fixed costs count
LENGTHS = {"cpu": [2**k for k in range(10, 21, 2)], "cuda": [2**k for k in range(10, 23, 2)]}


def inputs(shape: tuple[int, int, int, int], device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, length, channels, state = shape
    generator = torch.Generator().manual_seed(0)
    u, delta = (torch.randn(batch, length, channels, generator=generator) for _ in range(2))
    B, C = (torch.randn(batch, length, state, generator=generator) for _ in range(2))
    A = -torch.arange(1.0, state + 1).expand(channels, state)
    tensors = [u, 0.1 * torch.sigmoid(delta), A.contiguous(), B, C, torch.ones(channels)]
    kinds = [dtype, dtype, torch.float32, dtype, dtype, torch.float32]
    return [t.to(device, kind).requires_grad_() for t, kind in zip(tensors, kinds, strict=True)]


def contestants(device: str) -> dict[str, Scan]:
    ours = {"ours": selective_scan, f"ours, window {WINDOW}": partial(selective_scan, window=WINDOW)}
    if device == "cpu":
        peers = {"unbind": unbind_loop, "mamba-ssm reference": published_reference}
        return ours | peers | ({"mambapy": mambapy_pscan} if importlib.util.find_spec("mambapy") else {})
    ours["ours, two scans and flips"] = partial(two_scans_and_flips, selective_scan)
    return ours | ({"mamba-ssm": mamba_ssm_scan} if importlib.util.find_spec("mamba_ssm") else {})


def check_equal(scans: dict[str, Scan], arguments: list[Tensor]) -> None:
    """Outputs and gradients of all plain scans agree with ours, or there is nothing to time."""
    slow_too = arguments[0].shape[1] <= SLOW_LENGTH
    weight = torch.rand(arguments[0].shape, device=arguments[0].device)
    results = {}
    for name, scan in scans.items():
        if "window" not in name and "two scans" not in name and (name != "mamba-ssm reference" or slow_too):
            out = scan(*arguments)
            results[name] = [out.detach(), *torch.autograd.grad((out * weight).sum(), arguments)]
    for name, tensors in results.items():
        for ours, other in zip(results["ours"], tensors, strict=True):
            error = ((ours - other).abs().max() / other.abs().max()).item()
            if not error < (1e-3 if ours.dtype == torch.float32 else 3e-2):
                raise SystemExit(f"{name} differs from ours by {error:.1e} of the largest entry: nothing to time")


def train(scan: Scan, arguments: list[Tensor]) -> None:
    for tensor in arguments:
        tensor.grad = None
    scan(*arguments).backward(torch.ones_like(arguments[0]))


def infer(scan: Scan, arguments: list[Tensor]) -> None:
    with torch.no_grad():
        scan(*arguments)


def floors(device: str, shape: tuple[int, int, int, int], dtype: torch.dtype, rates: dict[str, float]) -> dict:
    """Least nanoseconds and bytes per element of a forward pass: u, delta, B, C in, out out; one exponential each."""
    batch, length, channels, state = shape
    moved = batch * length * (3 * channels + 2 * state) * dtype.itemsize / (batch * length * channels * state)
    memory = moved / rates["copy_bytes_per_ns"]
    return {"bytes": moved, "memory_ns": memory, "exponential_ns": rates["exponential_ns"]}


def machine_rates(device: str) -> dict[str, float]:
    """Measured: bytes a copy moves in a nanosecond, and the nanoseconds of an exponential of numbers in the cache."""
    size = 2**24 if device == "cpu" else 2**28
    source, target = torch.rand(size, device=device), torch.empty(size, device=device)
    count, exponentials = exponential_loop() if device == "cpu" else (size, lambda: torch.exp2(source, out=target))
    seconds = interleaved_medians({"copy": lambda: target.copy_(source), "exp2": exponentials}, 9)
    return {
        "copy_bytes_per_ns": 8 * size / seconds["copy"] / 1e9,
        "exponential_ns": seconds["exp2"] / count * 1e9,
    }


def exponential_loop(turns: int = 4000, vectors: int = 64) -> tuple[int, Callable[[], None]]:
    """A number of exponentials, and what computes so many on all threads, with the kernels' own instructions."""
    from seqattn.kernels.numba_support import jit, run_tasks
    from seqattn.kernels.numba_vector import LANES, exp2_near, load, pointer, store

    @jit
    def loop(source, target, first, stop):
        given, result = pointer(source, 0), pointer(target, 0)
        factor = load(given, 0)
        for _ in range(first, stop):
            for at in range(0, vectors * LANES, LANES):
                store(result, at, exp2_near(load(given, at), factor))

    source = torch.rand(vectors * LANES)
    return turns * source.numel(), partial(run_tasks, loop, (source.numpy(),), source, turns)


def compare(shape: tuple[int, int, int, int], device: str, repeats: int, rates: dict[str, float]) -> dict:
    """Time and memory of all contestants at one shape."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    arguments, scans = inputs(shape, device, dtype), contestants(device)
    elements = torch.Size(shape).numel()
    check_equal(scans, arguments)
    result: dict = {"shape": list(shape), "floor": floors(device, shape, dtype, rates), "ns_per_element": {}}
    slow = scans.pop("mamba-ssm reference", None)  # its gradients are quadratic in the length: once is enough
    for part, run in (("forward", infer), ("forward + backward", train)):
        runs = {name: partial(run, scan, arguments) for name, scan in scans.items()}
        seconds = interleaved_medians(runs, repeats)
        if slow is not None and (part == "forward" or shape[1] <= SLOW_LENGTH):
            start = time.perf_counter()
            run(slow, arguments)
            seconds["mamba-ssm reference"] = time.perf_counter() - start
        result["ns_per_element"][part] = {name: value / elements * 1e9 for name, value in seconds.items()}
    given = sum(arguments[index].nbytes for index in (0, 1, 3, 4))
    result["peak_over_inputs"] = {
        name: peak_bytes(partial(train, scan, arguments), device) / given for name, scan in scans.items()
    }
    result["peak_bytes_per_element"] = {
        name: ratio * given / elements for name, ratio in result["peak_over_inputs"].items()
    }
    return result


def growth(device: str, channels: int = 16, state: int = 16) -> dict:
    """Seconds and peak bytes of one sequence by its length, and the slopes of their logarithms."""
    scans = {"window 1": selective_scan, f"window {WINDOW}": partial(selective_scan, window=WINDOW)}
    scans["window = length"] = lambda *arguments: selective_scan(*arguments, window=arguments[0].shape[1])
    result: dict = {"shape": [1, "length", channels, state], "lengths": LENGTHS[device], "scans": {}}
    for name, scan in scans.items():
        seconds, peaks = [], []
        for length in LENGTHS[device]:
            arguments = inputs((1, length, channels, state), device)
            times = []
            for _ in range(6):
                start = time.perf_counter()
                train(scan, arguments)
                synchronize()
                times.append(time.perf_counter() - start)
            seconds.append(statistics.median(times[1:]))
            peaks.append(peak_bytes(partial(train, scan, arguments), device))
        result["scans"][name] = {
            "seconds": seconds,
            "peak_bytes": peaks,
            "slope_of_time": slope(result["lengths"], seconds, FROM),
            "slope_of_memory": slope(result["lengths"], peaks, FROM),
        }
    return result


def print_case(case: dict) -> None:
    floor = case["floor"]
    print(f"\n{tuple(case['shape'])} (batch, length, channels, state)")
    print(
        f"  floor: {floor['bytes']:.2f} B per element, {floor['memory_ns']:.3f} ns to move them, "
        f"{floor['exponential_ns']:.3f} ns for an exponential"
    )
    print(f"  {'':28s}{'forward':>20s}{'forward + backward':>24s}{'peak memory':>26s}")
    parts = case["ns_per_element"]
    for name in parts["forward"]:
        cells = [f"  {name:28s}"]
        for part, times in parts.items():
            cell = f"{times[name]:9.3f} ns {times[name] / times['ours']:6.1f}x" if name in times else "-"
            cells.append(f"{cell:>{20 if part == 'forward' else 24}s}")
        if name in case["peak_over_inputs"]:
            memory = f"{case['peak_bytes_per_element'][name]:.2f} B {case['peak_over_inputs'][name]:5.1f}x inputs"
            cells.append(f"{memory:>26s}")
        print("".join(cells))


def check_bars(case: dict) -> list[dict]:
    """Each bar of a CPU case with the ratio reached."""
    parts, bars = case["ns_per_element"], []
    for (part, peer), least in BARS.items():
        if peer in parts[part]:
            ratio = parts[part][peer] / parts[part]["ours"]
            bars.append({"bar": f"{part}: {peer} / ours >= {least}", "value": ratio, "met": ratio >= least})
    for part, times in parts.items():
        ratio = times[f"ours, window {WINDOW}"] / times["ours"]
        bars.append(
            {"bar": f"{part}: window {WINDOW} / plain <= {WINDOW_BAR}", "value": ratio, "met": ratio <= WINDOW_BAR}
        )
    ratio = case["peak_over_inputs"]["ours"]
    bars.append({"bar": f"peak memory / inputs <= {MEMORY_BAR}", "value": ratio, "met": ratio <= MEMORY_BAR})
    return bars


def draw(report: dict, file: Path) -> None:
    """Time and memory by length, and nanoseconds per element of all contestants, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    bars, time_axes, memory_axes = figure.subplots(1, 3)
    names = list(report["cases"][0]["ns_per_element"]["forward + backward"])
    for index, case in enumerate(report["cases"]):
        values = [case["ns_per_element"]["forward + backward"].get(name, 0) for name in names]
        bars.barh([i + 0.25 * (index - 1) for i in range(len(names))], values, 0.25, label=str(tuple(case["shape"])))
    bars.set(xscale="log", xlabel="ns per element, forward + backward", yticks=range(len(names)), yticklabels=names)
    bars.legend(title="batch, length, channels, state", fontsize=7, title_fontsize=7)
    lengths = report["growth"]["lengths"]
    for name, scan in report["growth"]["scans"].items():
        label = f"{name}: slope {scan['slope_of_time']:.2f}"
        time_axes.loglog(lengths, scan["seconds"], marker="o", label=label)
        label = f"{name}: slope {scan['slope_of_memory']:.2f}"
        memory_axes.loglog(lengths, [peak / 2**20 for peak in scan["peak_bytes"]], marker="o", label=label)
    time_axes.set(xlabel="steps", ylabel="s, forward + backward", title="one sequence of 16 channels")
    memory_axes.set(xlabel="steps", ylabel="peak MiB, forward + backward", title="one sequence of 16 channels")
    for axes in (time_axes, memory_axes):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--skip-growth", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict = {"machine": machine(options.device), "rates": machine_rates(options.device), "cases": []}
    print(report["machine"])
    for shape in SHAPES[options.device]:
        case = compare(shape, options.device, options.repeats, report["rates"])
        case["bars"] = check_bars(case) if options.device == "cpu" else []
        report["cases"].append(case)
        print_case(case)
        for bar in case["bars"]:
            print(f"  {'met   ' if bar['met'] else 'MISSED'} {bar['bar']}: {bar['value']:.2f}")
    if not options.skip_growth:
        report["growth"] = growth(options.device)
        print(f"\nlength {LENGTHS[options.device][0]} to {LENGTHS[options.device][-1]}, 16 channels, 16 states")
        for name, scan in report["growth"]["scans"].items():
            print(
                f"  {name:16s} time ~ length^{scan['slope_of_time']:.3f}, "
                f"memory ~ length^{scan['slope_of_memory']:.3f}, "
                f"longest {scan['seconds'][-1]:.2f} s, {scan['peak_bytes'][-1] / 2**20:.0f} MiB"
            )
    if options.json:
        write_report(report, options.json, "selective_scan")
    if options.figure:
        draw(report, options.figure)


if __name__ == "__main__":
    main()
