"""MPTSNet against a plain transcription of the publication: equal logits first, then time on one CPU thread.

python benchmarks/mptsnet.py [--repeats 7] [--threads 1] [--device cpu|cuda] [--json FILE|FOLDER]

With --device cuda both run on the GPU; a folder as --json gets a file named after it.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain_mptsnet import PlainMPTSNet

from seqattn.models.mptsnet import MPTSNet

CASES = {
    "6 channels, 100 steps": {"in_channels": 6, "seq_len": 100, "num_classes": 4, "periods": [8, 10, 12, 11, 17]},
    "12 channels, 29 steps": {"in_channels": 12, "seq_len": 29, "num_classes": 9, "periods": [14, 10, 7, 5, 6]},
}
BARS = {"forward": 5.0, "forward + backward": 6.0}


def machine(device: str) -> str:
    """One line that names the processor and the versions."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{processor or platform.processor()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def interleaved_medians(contestants: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each contestant, all timed in turns so that a noisy machine is noisy for all."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(case: dict, repeats: int, device: str, batch: int = 4) -> dict:
    torch.manual_seed(0)
    plain = PlainMPTSNet(case["in_channels"], case["seq_len"], case["num_classes"], case["periods"]).eval()
    ours = MPTSNet.from_official(plain.state_dict(), **case).eval()
    plain, ours = plain.to(device), ours.to(device)
    x = torch.randn(batch, case["seq_len"], case["in_channels"]).to(device)
    transposed = x.transpose(1, 2).contiguous()
    with torch.no_grad():
        expected, got = plain(transposed), ours(x)
    difference = ((got - expected).abs().max() / expected.abs().max()).item()
    if not difference < 1e-5:
        raise SystemExit(f"logits differ by {difference:.1e} of the largest one: nothing to time")

    def train(model: torch.nn.Module, inputs: torch.Tensor) -> None:
        model.zero_grad()
        model(inputs).logsumexp(-1).sum().backward()

    with torch.no_grad():
        forward = interleaved_medians({"plain": lambda: plain(transposed), "ours": lambda: ours(x)}, repeats)
    both = interleaved_medians({"plain": lambda: train(plain, transposed), "ours": lambda: train(ours, x)}, repeats)
    return {"logit_difference": difference, "forward": forward, "forward + backward": both}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the logits are compared
    report: dict = {"machine": machine(options.device), "batch": 4, "cases": {}}
    print(report["machine"])
    for name, case in CASES.items():
        result = compare(case, options.repeats, options.device)
        report["cases"][name] = result
        print(f"{name}: logits equal within {result['logit_difference']:.1e} of the largest")
        for part, bar in BARS.items():
            seconds = result[part]
            result[part]["ratio"] = ratio = seconds["plain"] / seconds["ours"]
            print(
                f"  {part:20s} plain {seconds['plain']:.3f} s  ours {seconds['ours']:.3f} s  {ratio:.1f}x (bar {bar})"
            )
    if options.json:
        file = options.json
        if not file.suffix:
            file = file / f"{report['machine'].split(',')[0].replace(' ', '-')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
