"""What the benchmarks share: the machine's name, medians of contestants timed in turns, peak memory, the JSON file."""

import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

SETTLING = 0.1


def machine(device: str) -> str:
    """One line that names the processor and the versions."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    processor = fields.get("model name") or platform.processor()
    vectors = "AVX-512" if "avx512f" in fields.get("flags", "") else "AVX2" if "avx2" in fields.get("flags", "") else ""
    return ", ".join(
        filter(None, [processor, vectors, f"{torch.get_num_threads()} thread(s), torch {torch.__version__}"])
    )


def interleaved_medians(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each contestant, all timed in turns so that a noisy machine is noisy for all.

    In its turn a contestant first runs once, and again until SETTLING seconds are over: what the one before it left
    behind, memory that the system takes back above all, is then not charged to it.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, run in contestants.items():
            settled = time.perf_counter() + SETTLING
            run()
            while time.perf_counter() < settled:
                run()
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep what this process frees, as other allocators do.

    Else every call on long sequences gets fresh pages from the system, whose first touch costs what the system makes it
    cost, while short sequences get theirs again.
    """
    mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


def synchronize() -> None:
    """Wait for a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Most memory that `run` holds beyond what was held before: of the GPU, or of this process (Linux)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    run()  # what is allocated once and kept does not count
    ctypes.CDLL(None).malloc_trim(0)  # nor does what the allocator holds back from earlier work
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def slope(lengths: list[int], values: list[float], least: int = 0) -> float:
    """Least-squares slope of log(value) against log(length), over lengths of at least `least`."""
    points = [point for point in zip(lengths, values, strict=True) if point[0] >= least]
    x, y = (torch.tensor(column, dtype=torch.float64).log() for column in zip(*points, strict=True))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def write_report(report: dict, file: Path, benchmark: str) -> None:
    """Write JSON to a file, or, given a folder, under the benchmark's name into the file of the machine there."""
    if not file.suffix:
        file = file / f"{report['machine'].split(',')[0].replace(' ', '-')}.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        report = {**kept, benchmark: report}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n")
