"""Write the measured part of selective_scan.md: python docs/kernels/selective_scan.py [--check].

python benchmarks/selective_scan.py --json benchmarks/results/selective_scan-cpu.json \
        --figure docs/kernels/figures/selective_scan.png
"""

import json
from pathlib import Path

from measured import RESULTS, renew

PAGE = Path(__file__).parent / "selective_scan.md"


def case_rows(case: dict) -> list[str]:
    """One row for each contestant at one shape."""
    rows = []
    for name, forward in case["ns_per_element"]["forward"].items():
        both = case["ns_per_element"]["forward + backward"]
        ours = case["ns_per_element"]["forward"]["ours"]
        cells = [str(tuple(case["shape"])), name, f"{forward:.2f} ({forward / ours:.1f}×)"]
        cells.append(f"{both[name]:.2f} ({both[name] / both['ours']:.1f}×)" if name in both else "–")
        memory = case["peak_over_inputs"].get(name)
        cells.append("–" if memory is None else f"{case['peak_bytes_per_element'][name]:.1f} ({memory:.1f}×)")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def measured() -> str:
    report = json.loads((RESULTS / "selective_scan-cpu.json").read_text())
    floor, growth = report["cases"][0]["floor"], report["growth"]
    lines = [
        f"{report['machine']}, float32, no gate; medians of runs taken in turns, outputs and gradients compared first.",
        "An element is one (batch, length, channel, state). In brackets: times ours, and peak memory of forward +",
        "backward by the bytes of u, delta, B and C. The floor of the forward pass: "
        f"{floor['bytes']:.2f} bytes per element take",
        f"{floor['memory_ns']:.3f} ns at the measured copy bandwidth, one exponential of numbers in the cache",
        f"{floor['exponential_ns']:.3f} ns: the exponentials bind.",
        "",
        "| batch, length, channels, state | scan | forward, ns | forward + backward, ns | peak memory, bytes |",
        "|---|---|---|---|---|",
        *(row for case in report["cases"] for row in case_rows(case)),
        "",
        "| batch, length, channels, state | bar | reached | |",
        "|---|---|---|---|",
    ]
    for case in report["cases"]:
        for bar in case["bars"]:
            verdict = "met" if bar["met"] else "**missed**"
            lines.append(f"| {tuple(case['shape'])} | {bar['bar']} | {bar['value']:.2f} | {verdict} |")
    lines += [
        "",
        f"Growth from {growth['lengths'][0]:,} to {growth['lengths'][-1]:,} steps, 16 channels, 16 states:",
        "",
    ]
    for name, scan in growth["scans"].items():
        lines.append(
            f"- {name}: time ~ length^{scan['slope_of_time']:.2f}, memory ~ length^{scan['slope_of_memory']:.2f}; "
            f"forward + backward of the longest takes {scan['seconds'][-1]:.1f} s and "
            f"{scan['peak_bytes'][-1] / 2**20:.0f} MiB."
        )
    return "\n".join([*lines, "", "![time and memory](figures/selective_scan.png)", ""])


if __name__ == "__main__":
    renew(PAGE, measured, __doc__)
