"""MambAttention against a plain transcription of the publication: equal outputs first, then time and peak memory.

python benchmarks/mambattention.py [--threads 1] [--repeats 3] [--batch 1] [--seconds 1 2] [--device cpu|cuda]
        [--memory GIB] [--plain-memory] [--quick] [--json FILE|FOLDER]

The published sizes, on clips of noise. A training step is forward, the published loss without the metric term, and
backward. Where what the plain scans keep for it is more than --memory GiB (10, on a GPU 60), they are computed again
in the backward pass, as the published kernel does. Peak memory is that of a training step of the longest clip, in a
process of its own. --quick runs one block on a quarter of a second, to see that everything works.
"""

import argparse
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from measuring import interleaved_medians, machine, peak_bytes, write_report
from plain_mambattention import HOP, PlainMambAttention, generator_losses, stft, total_loss
from torch import Tensor, nn

from seqattn.models.mambattention import MambAttention

RATE = 16_000
BLOCKS, SECONDS = 4, [1.0, 2.0]
QUICK_BLOCKS, QUICK_SECONDS = 1, [0.25]
CHECKED_SECONDS = 0.25
TOLERANCES = {"magnitude": 1e-4, "complex": 1e-3, "phase, mean": 1e-4, "gradient of the magnitude": 1e-3}
BARS = {"forward": 3.5, "forward + backward": 5.0}
MEMORY_BAR = 4e9
INNER, STATE, SCANS = 256, 16, 4  # of a block
KEPT = 4.2  # tensors of states a plain scan holds: transitions and states, twice that with the allocator's gaps
MEMORY = {"cpu": 10.0, "cuda": 60.0}
Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def networks(blocks: int, device: str, recompute_scans: bool = False) -> dict[str, nn.Module]:
    """The same weights twice."""
    torch.manual_seed(0)
    plain = PlainMambAttention(blocks=blocks, recompute_scans=recompute_scans)
    return {"plain": plain.to(device), "ours": MambAttention.from_official(plain.state_dict()).to(device)}


def clips(batch: int, seconds: float, device: str) -> tuple[Tensor, Tensor]:
    """Noisy and clean (batch, samples), the noisy one of mean square 1."""
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, batch, int(seconds * RATE) // HOP * HOP, generator=generator)
    clean = clean * torch.linspace(0, 40 * math.pi, clean.shape[1]).sin()  # loud and quiet stretches
    gain = (clean + noise).square().mean(1, keepdim=True).rsqrt()
    return ((clean + noise) * gain).to(device), (clean * gain).to(device)


def check_equal(device: str, blocks: int, batch: int) -> dict[str, float]:
    """Outputs and the gradient of a training step agree, or there is nothing to time. Errors by TOLERANCES' keys."""
    noisy, clean = clips(batch, CHECKED_SECONDS, device)
    magnitude, phase, _ = stft(noisy)
    results = {}
    for name, network in networks(blocks, device).items():
        magnitude = magnitude.detach().requires_grad_()
        outputs = network.eval()(magnitude, phase)
        gradient = torch.autograd.grad(total_loss(generator_losses(outputs, clean)), magnitude)[0]
        with torch.no_grad():  # a network may take other ways then
            results[name] = (*network(magnitude, phase), gradient)
    (*expected, gradient), (*got, our_gradient) = results["plain"], results["ours"]
    turns = (got[1] - expected[1]) / (2 * math.pi)
    errors = {
        "magnitude": _relative_error(got[0], expected[0]),
        "complex": _relative_error(got[2], expected[2]),
        "phase, mean": 2 * math.pi * (turns - turns.round()).abs().mean().item(),
        "gradient of the magnitude": _relative_error(our_gradient, gradient),
    }
    for name, error in errors.items():
        if not error < TOLERANCES[name]:
            raise SystemExit(f"{name}: ours differs by {error:.1e} from the plain one: nothing to time")
    return errors


def _relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def infer(network: Network, noisy: Tensor) -> None:
    magnitude, phase, _ = stft(noisy)
    with torch.no_grad():
        network(magnitude, phase)


def train(network: nn.Module, noisy: Tensor, clean: Tensor) -> None:
    network.zero_grad()
    magnitude, phase, _ = stft(noisy)
    total_loss(generator_losses(network(magnitude, phase), clean)).backward()


def measure(device: str, blocks: int, batch: int, seconds: float, repeats: int, memory: float) -> dict:
    """Median seconds of both; a third of the repeats for training steps, which take a minute."""
    recompute = states_gib(blocks, batch, seconds) > memory
    noisy, clean = clips(batch, seconds, device)
    found = networks(blocks, device, recompute)
    entry = {"seconds": seconds, "plain_recomputes_scans": recompute}
    runs = {name: partial(infer, network.eval(), noisy) for name, network in found.items()}
    entry["forward"] = interleaved_medians(runs, repeats)
    runs = {name: partial(train, network.train(), noisy, clean) for name, network in found.items()}
    entry["forward + backward"] = interleaved_medians(runs, max(1, repeats // 3))
    for part in BARS:
        entry[part]["ratio"] = entry[part]["plain"] / entry[part]["ours"]
    return entry


def states_gib(blocks: int, batch: int, seconds: float) -> float:
    """What the plain scans keep for the backward pass, in float32, of 100 bins."""
    tokens = batch * 100 * (int(seconds * RATE) // HOP + 1)
    return KEPT * 4 * tokens * INNER * STATE * SCANS * blocks / 2**30


def peak_of(name: str, device: str, blocks: int, batch: int, seconds: float, memory: float) -> int:
    """Peak bytes of a training step, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        recompute = states_gib(blocks, batch, seconds) > memory
        arguments = name, device, blocks, batch, seconds, recompute, torch.get_num_threads()
        return pool.submit(_peak, *arguments).result()


def _peak(name: str, device: str, blocks: int, batch: int, seconds: float, recompute: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    exact_products()
    network = networks(blocks, device, recompute)[name].train()
    return peak_bytes(partial(train, network, *clips(batch, seconds, device)), device)


def exact_products() -> None:
    """No TF32: the outputs are compared."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def print_entry(entry: dict) -> None:
    again = ", plain scans computed again" if entry["plain_recomputes_scans"] else ""
    print(f"{entry['seconds']:g} s of audio{again}")
    for part, bar in BARS.items():
        plain, ours, ratio = (entry[part][key] for key in ("plain", "ours", "ratio"))
        print(f"  {part:20s} plain {plain:.3f} s  ours {ours:.3f} s  {ratio:.1f}x (bar {bar})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", nargs="+", type=float, default=SECONDS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", type=float, help="GiB of states that the plain scans may keep")
    parser.add_argument("--plain-memory", action="store_true", help="measure the plain one's too, of some 16 GB")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    exact_products()
    device, batch, blocks, repeats = options.device, options.batch, BLOCKS, options.repeats
    memory = MEMORY[device] if options.memory is None else options.memory
    if options.quick:
        blocks, options.seconds, repeats = QUICK_BLOCKS, QUICK_SECONDS, 1
    report: dict = {"machine": machine(device), "batch": batch, "blocks": blocks, "clips": []}
    print(report["machine"])
    report["errors"] = check_equal(device, blocks, batch)
    print("equal: " + ", ".join(f"{name} within {error:.1e}" for name, error in report["errors"].items()))
    for seconds in options.seconds:
        report["clips"].append(measure(device, blocks, batch, seconds, repeats, memory))
        print_entry(report["clips"][-1])
    longest = max(options.seconds)
    measured = ("plain", "ours") if options.plain_memory else ("ours",)
    report["peak_bytes"] = {name: peak_of(name, device, blocks, batch, longest, memory) for name in measured}
    peaks = "  ".join(f"{name} {peak / 1e9:.2f} GB" for name, peak in report["peak_bytes"].items())
    print(f"peak memory of a training step of {longest:g} s: {peaks} (bar {MEMORY_BAR / 1e9:g} GB)")
    if options.json:
        write_report(report, options.json, "mambattention")


if __name__ == "__main__":
    main()
