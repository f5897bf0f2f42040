"""MPTSNet against a plain transcription of the publication: equal logits first, then time on one CPU thread.

python benchmarks/mptsnet.py [--repeats 7] [--threads 1] [--device cpu|cuda] [--json FILE|FOLDER]

With --device cuda both run on the GPU; given a folder, --json adds to the file of the machine there.
"""

import argparse
from pathlib import Path

import torch
from measuring import interleaved_medians, machine, write_report
from plain_mptsnet import PlainMPTSNet

from seqattn.models.mptsnet import MPTSNet

CASES = {
    "6 channels, 100 steps": {"in_channels": 6, "seq_len": 100, "num_classes": 4, "periods": [8, 10, 12, 11, 17]},
    "12 channels, 29 steps": {"in_channels": 12, "seq_len": 29, "num_classes": 9, "periods": [14, 10, 7, 5, 6]},
}
BARS = {"forward": 5.0, "forward + backward": 6.0}


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
        write_report(report, options.json, "mptsnet")


if __name__ == "__main__":
    main()
