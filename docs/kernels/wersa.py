"""Write the measured part of wersa.md: python docs/kernels/wersa.py [--check].

python benchmarks/wersa.py --json benchmarks/results/wersa-cpu.json --figure docs/kernels/figures/wersa.png
"""

import json
from pathlib import Path

from measured import RESULTS, renew

PAGE = Path(__file__).parent / "wersa.md"
PARTS = ("forward", "forward + backward")


def cost(entry: dict, part: str, name: str, heads: int) -> str:
    """Nanoseconds per token and head, or what one call would take."""
    if name in entry["seconds"][part]:
        return f"{entry['seconds'][part][name] / entry['length'] / heads * 1e9:,.0f}"
    expected = entry["expected"][f"{part}: {name}"]
    return f"not run ({expected:,.0f} s a call)"


def time_table(report: dict, part: str) -> list[str]:
    names = list(report["lengths"][0]["seconds"][part])
    lines = ["| tokens | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
    for entry in report["lengths"]:
        cells = [f"{entry['length']:,}", *(cost(entry, part, name, report["heads"]) for name in names)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def memory_table(report: dict) -> list[str]:
    names = list(report["lengths"][0]["seconds"]["forward"])
    lines = ["| tokens | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
    for entry in report["lengths"]:
        ratios = (entry["peak_bytes"].get(name) for name in names)
        cells = ["–" if bytes_ is None else f"{bytes_ / entry['given_bytes']:.1f}" for bytes_ in ratios]
        lines.append(f"| {entry['length']:,} | " + " | ".join(cells) + " |")
    return lines


def limit_table(limits: dict) -> list[str]:
    lines = [
        "| to its limit, or between queries | " + " | ".join(f"m = {count:,}" for count in limits["features"]) + " |",
        "|" + "---|" * (1 + len(limits["features"])),
    ]
    for name, values in limits["rows"].items():
        lines.append("| " + " | ".join([name.replace("|", r"\|"), *(f"{value:.4f}" for value in values)]) + " |")
    return lines


def measured() -> str:
    report = json.loads((RESULTS / "wersa-cpu.json").read_text())
    lines = [
        f"{report['machine']}, float32, one sequence, {report['heads']} heads of {report['dim']} channels, "
        f"{report['features']} features, {report['levels']} levels;",
        "medians of runs taken in turns, a third as many beyond 65,536 tokens; outputs and gradients compared first.",
        "The process keeps the memory that calls free. With the allocator's defaults (`--fresh-memory`) a call on a",
        "long sequence also pays for the first touch of fresh pages, by what the system takes for it.",
        "",
    ]
    for part in PARTS:
        lines += [f"Nanoseconds per token and head, {part}:", "", *time_table(report, part), ""]
    lines += ["Peak memory of forward + backward beside the inputs, by the bytes of q, k, v and out:", ""]
    lines += [*memory_table(report), ""]
    for name, value in report["slopes"].items():
        lines.append(f"- {name}: time ~ length^{value:.3f} from 4,096 tokens on.")
    for part, value in report["break_even"].items():
        since = "at none" if value is None else f"from {value:,} tokens on,"
        lines.append(f"- {part}: faster than scaled_dot_product_attention {since} of the lengths above.")
    lines += ["", "| bar | reached | |", "|---|---|---|"]
    for bar in report["bars"]:
        lines.append(f"| {bar['bar']} | {bar['value']:.2f} | {'met' if bar['met'] else '**missed**'} |")
    lines += [
        "",
        "Mean total-variation distance of attention weights, 128 tokens, 64 channels of standard deviation σ, gains 1:",
        "",
        *limit_table(report["limits"]),
        "",
        "![time, memory and limits](figures/wersa.png)",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    renew(PAGE, measured, __doc__)
