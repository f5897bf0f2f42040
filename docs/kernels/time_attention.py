"""Write the measured part of time_attention.md: python docs/kernels/time_attention.py [--check].

python benchmarks/time_attention.py --json benchmarks/results/time_attention-cpu.json
"""

import json
from pathlib import Path

from measured import RESULTS, renew

PAGE = Path(__file__).parent / "time_attention.md"


def measured() -> str:
    report = json.loads((RESULTS / "time_attention-cpu.json").read_text())
    sizes = ", ".join(f"{report[name]} {name}" for name in ("queries", "heads", "dim", "channels"))
    lines = [
        f"{report['machine']}; batch 8, {sizes}, a quarter of the cells observed, float32.",
        "",
        "| observations a sample | forward, plain → ours | ratio | forward + backward | ratio | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in report["cases"].items():
        times = [
            f"{1e3 * case[part]['plain']:.1f} → {1e3 * case[part]['ours']:.2f} ms | {case[part]['ratio']:.0f}x"
            for part in ("forward", "forward + backward")
        ]
        plain, ours = (case["peak_bytes"][side] / 2**20 for side in ("plain", "ours"))
        lines.append(f"| {name} | {times[0]} | {times[1]} | {plain:.0f} → {ours:.1f} MiB |")
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    renew(PAGE, measured, __doc__)
