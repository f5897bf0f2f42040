"""The shipped speech enhancer on real pairs, and what cutting a recording into segments changes.

python benchmarks/speech.py --pairs DIR [--json FOLDER] [--figure PNG] [--workers 1]

DIR holds pairs of noisy and clean files. Writes shipped.json, the means of every measure at both scales, and
segments.json: the pairs' noisy recordings joined to 60 s are enhanced whole and in segments of several lengths, with
several lengths of context; what comes out is compared with the whole. Peak memory and seconds a second of audio are
those of a 10-minute file, and of 30 s with a network of the published size, in the default segmentation.
"""

import argparse
import json
import math
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from measuring import machine
from torch import Tensor

from seqattn.data.speech_folders import evaluation_pairs
from seqattn.data.speech_pairs import RecordedPairs
from seqattn.experiment.enhancement import enhance_file
from seqattn.experiment.enhancers import load_enhancer
from seqattn.experiment.speech_evaluation import evaluate_clips, summary
from seqattn.experiment.streaming import FADE_SECONDS, Enhancer, Segment, Segmentation, enhance_stream
from seqattn.layers.spectrum import rms_gain
from seqattn.metrics.si_sdr import si_sdr
from seqattn.models.mambattention import MambAttention
from seqattn.models.pretrained import DEFAULT, load_pretrained

RATE = 16_000
MEASURED_SECONDS = 60
SEGMENTS, CONTEXTS = (6.0, 12.0, 24.0), (0.1, 0.25, 0.5, 1.0, 2.0)


def shipped(pairs: RecordedPairs, workers: int) -> dict[str, Any]:
    """Means over the pairs at both scales of the composite measures."""
    network = load_pretrained()
    means = {
        scale: summary(evaluate_clips(pairs, lambda noisy: network.enhance(noisy), scale, workers))
        for scale in ("int16", "float")
    }
    return {"weights": DEFAULT, "parameters": sum(p.numel() for p in network.parameters()), **means}


def joined(pairs: RecordedPairs, seconds: int) -> Tensor:
    """(1, samples): noisy recordings one after the other, from the first again where there are too few."""
    parts, samples = [], 0
    while samples < seconds * RATE:
        for _, noisy, _ in pairs:
            parts.append(noisy)
            samples += len(noisy)
    return torch.cat(parts)[None, : seconds * RATE]


def in_segments(waveform: Tensor, enhancer: Enhancer, segments: list[Segment], gain: Tensor) -> Tensor:
    position = 0

    def read(samples: int) -> Tensor:
        nonlocal position
        position += samples
        return waveform[:, position - samples : position]

    return torch.cat([piece for _, piece in enhance_stream(read, segments, RATE, enhancer, gain)], 1)


def roughness(waveform: Tensor, places: list[int]) -> float:
    """Mean size of second differences over 50 ms at the places, over that everywhere."""
    bends = torch.diff(waveform[0], n=2).abs()
    reach = round(FADE_SECONDS * RATE)
    return (torch.cat([bends[place : place + reach] for place in places]).mean() / bends.mean()).item()


def level_steps(waveform: Tensor, whole: Tensor, places: list[int]) -> float:
    """Largest change in dB, across a join, of the level over half a second relative to the whole's."""
    half = RATE // 2

    def level(place: int) -> float:
        part, reference = waveform[0, place : place + half], whole[0, place : place + half]
        return 10 * math.log10(part.square().mean() / reference.square().mean())

    return max(abs(level(place + half // 10) - level(place - half)) for place in places)


def segment_rows(waveform: Tensor, enhancer: Enhancer) -> list[dict[str, float]]:
    gain = rms_gain(waveform)
    whole = enhancer(waveform, gain)
    rows = []
    for length in SEGMENTS:
        for context in CONTEXTS:
            segments = Segmentation(length, context).segments(waveform.shape[1], RATE)
            out = in_segments(waveform, enhancer, segments, gain)
            joins = [segment.first for segment in segments[1:]]
            rows.append({
                "segment": length, "context": context, "joins": len(joins),
                "si_sdr_to_whole": si_sdr(whole, out).item(),
                "roughness": roughness(out, joins), "roughness_of_whole": roughness(whole, joins),
                "level_step_db": level_steps(out, whole, joins),
            })  # fmt: skip
            print("  ".join(f"{name} {value:.3g}" for name, value in rows[-1].items()), flush=True)
    return rows


def file_of(waveform: Tensor, seconds: int, published: bool) -> dict[str, float]:
    """Seconds a second of audio, and the peak memory of a process that does nothing else, for a file so long.

    published: of a network of the published size, with random weights; else of the shipped one.
    """
    samples = waveform.repeat(1, -(-seconds * RATE // waveform.shape[1]))[0, : seconds * RATE].numpy()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_enhance_file, samples, published, torch.get_num_threads()).result()


def _enhance_file(samples: np.ndarray, published: bool, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    enhancer = load_enhancer(device="cpu")
    if published:
        network = MambAttention().eval()
        enhancer = lambda waveform, gain: network.enhance(waveform, gain=gain)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "long.wav", Path(folder) / "enhanced.wav"
        soundfile.write(source, samples, RATE)
        start = time.perf_counter()
        enhance_file(source, target, enhancer)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    duration = len(samples) / RATE
    return {"seconds": duration, "real_time_factor": seconds / duration, "peak_bytes_of_process": peak}


def picture(rows: list[dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="context (s)", ylabel="SI-SDR to the whole file's output (dB)")
    for length in SEGMENTS:
        points = [(row["context"], row["si_sdr_to_whole"]) for row in rows if row["segment"] == length]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"segments of {length:g} s")
    axes.set_xticks(CONTEXTS, [f"{context:g}" for context in CONTEXTS])
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="folder for shipped.json and segments.json")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    print(machine("cpu"))
    pairs = RecordedPairs(evaluation_pairs(options.pairs))
    waveform = joined(pairs, MEASURED_SECONDS)
    enhancer = load_enhancer(device="cpu")
    files = {"shipped": file_of(waveform, 600, published=False), "published": file_of(waveform, 30, published=True)}
    print(files)
    rows = segment_rows(waveform, enhancer)
    means = shipped(pairs, options.workers) | {"pairs": options.pairs.name, "machine": machine("cpu")}
    if options.json:
        options.json.mkdir(parents=True, exist_ok=True)
        segments = {"machine": machine("cpu"), "seconds": MEASURED_SECONDS, "rows": rows, "files": files}
        for name, report in (("shipped", means), ("segments", segments)):
            (options.json / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.figure:
        picture(rows, options.figure)


if __name__ == "__main__":
    main()
