"""Recordings with clean references: measured before and after enhancement, as a table and as means."""

import csv
import functools
import io
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqattn.errors import SeqattnError
from seqattn.experiment.run_directory import atomic_write_text
from seqattn.metrics import speech_metrics
from seqattn.metrics.composite import Scale
from seqattn.metrics.intervals import mean_interval
from seqattn.metrics.perceptual import SAMPLE_RATE
from seqattn.metrics.speech import METRICS, checked_signal

Row = dict[str, Any]
Pair = tuple[str, Tensor, Tensor]
Skip = Callable[[SeqattnError], None]
Result = TypeVar("Result")
Enhance = Callable[[Tensor], Tensor]
Signals = dict[str, NDArray[np.floating]]  # clean, noisy and, with a network, enhanced

SIGNALS = ("noisy", "enhanced")
LINE_EVERY = 10  # files
TITLES = {"si_sdr": "SI-SDR dB", "ssnr": "SSNR dB"}


def evaluate_clips(
    pairs: Iterable[Pair], enhance: Enhance | None, scale: Scale = "int16", workers: int = 0,
    skip: Skip | None = None,
) -> list[Row]:  # fmt: skip
    """Measure every (name, noisy, clean), in their order; a line on stderr after every ten files.

    pairs: noisy and clean (samples,) at 16 kHz in [-1, 1]; the longer is cut to the shorter. Read as they are needed.
        An iterator that raises SeqattnError for a file and then goes on, as those of `RecordedPairs` and
        `SpeechDataModule.test_pairs` do, skips that file.
    enhance: (1, samples) -> (1, samples), called in this process; None measures the noisy signals alone.
    scale: see `speech_metrics`.
    workers: processes that measure while this one enhances the next files; 0 measures in this one.
    skip: called with the error of a file that cannot be read or measured, which is left out; None raises the error.

    Returns one row per file: file, scale, seconds, and noisy_METRIC and enhanced_METRIC for each of METRICS.

    Raises:
        SeqattnError: naming the file that cannot be measured, see `speech_metrics`.
    """
    rows: list[Row] = []
    start = time.perf_counter()
    read = _tried(itertools.repeat(iter(pairs).__next__), skip)
    try:
        for row in _tried(_measured(_enhanced(read, enhance), scale, workers), skip):
            rows.append(row)
            if len(rows) % LINE_EVERY == 0:
                print(_progress(rows, time.perf_counter() - start), file=sys.stderr, flush=True)
    except BrokenProcessPool:
        raise SeqattnError(
            "a process that measured the recordings died: run again with workers=0 to see at which one"
        ) from None
    return rows


def _tried(calls: Iterable[Callable[[], Result]], skip: Skip | None) -> Iterator[Result]:
    """What the calls return, until one raises StopIteration; the errors of those that fail go to `skip`."""
    for call in calls:
        try:
            result = call()
        except StopIteration:
            return
        except SeqattnError as error:
            if skip is None:
                raise
            skip(error)
        else:
            yield result


def _enhanced(pairs: Iterable[Pair], enhance: Enhance | None) -> Iterator[tuple[str, Signals]]:
    """Name and signals of every pair, one at a time."""
    for name, noisy, clean in pairs:
        signals = {"clean": clean, "noisy": noisy}
        if enhance is not None:
            with torch.inference_mode():
                signals["enhanced"] = enhance(noisy[None])[0]
        yield name, {signal: samples.cpu().numpy() for signal, samples in signals.items()}


def _measured(clips: Iterable[tuple[str, Signals]], scale: Scale, workers: int) -> Iterator[Callable[[], Row]]:
    """What returns the row of each clip, in order; with `workers`, at most two clips for each are on their way."""
    if not workers:
        yield from (functools.partial(measure_clip, name, signals, scale) for name, signals in clips)
        return
    # spawn: a forked process would inherit this one's threads and GPU
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[Future[Row]] = deque()
        for name, signals in clips:
            waiting.append(pool.submit(measure_clip, name, signals, scale))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result


def measure_clip(name: str, signals: Signals, scale: Scale) -> Row:
    """The row of one file, see `evaluate_clips`."""
    checked = {signal: checked_signal(samples, f"{name}, {signal}") for signal, samples in signals.items()}
    samples = min(map(len, checked.values()))
    row: Row = {"file": name, "scale": scale, "seconds": round(samples / SAMPLE_RATE, 3)}
    clean = checked.pop("clean")
    for signal, estimate in checked.items():
        scores = speech_metrics(clean, estimate, SAMPLE_RATE, scale)
        row |= {f"{signal}_{metric}": scores[metric] for metric in METRICS}
    return row


def _progress(rows: Sequence[Row], seconds: float) -> str:
    """Files so far with their mean PESQ and SI-SDR."""
    found = {metric: _columns(rows, metric) for metric in ("pesq", "si_sdr")}
    means = [
        f"{signal}_{metric} {mean_interval(found[metric][signal]).mean:.4g}"
        for signal in SIGNALS
        for metric in found
        if signal in found[metric]
    ]
    return "  ".join([f"files {len(rows)}", *means, f"{seconds:.1f} s"])


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """CSV with the columns of `evaluate_clips`; what could not be measured is nan."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["file"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    atomic_write_text(path, text.getvalue())


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the files, fit for JSON: scale, files, and for noisy and enhanced each metric's mean and interval.

    An entry such as result["noisy"]["pesq"] has mean, half_width (of the 95 % interval), count and left_out, the
    files whose value is not finite, noisy or enhanced: both means are of the same files. A mean or half width that does
    not exist is None.

    Raises:
        SeqattnError: there is no row.
    """
    if not rows:
        raise SeqattnError("no recording was measured: give at least one noisy file with its clean one")
    result: dict[str, Any] = {"scale": rows[0]["scale"], "files": len(rows)}
    for metric in METRICS:
        for signal, values in _columns(rows, metric).items():
            result.setdefault(signal, {})[metric] = _mean(values)
    return result


def _columns(rows: Sequence[Row], metric: str) -> dict[str, NDArray[np.float64]]:
    """A metric's values of each signal that was measured; NaN for a file where that of either is not finite."""
    names = [signal for signal in SIGNALS if f"{signal}_{metric}" in rows[0]]
    values = np.array([[row[f"{signal}_{metric}"] for row in rows] for signal in names], np.float64)
    return dict(zip(names, np.where(np.isfinite(values).all(0), values, np.nan), strict=True))


def _mean(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    entry = asdict(mean_interval(values))
    return {name: value if np.isfinite(value) else None for name, value in entry.items()}


def format_table(summary: Mapping[str, Any]) -> str:
    """The means of `summary` as plain text, one line a metric, noisy beside enhanced."""
    signals = [signal for signal in SIGNALS if signal in summary]
    lines = [f"{'':10}" + "".join(f"{signal:>20}" for signal in signals)]
    for metric in METRICS:
        cells = "".join(f"{_cell(summary[signal][metric]):>20}" for signal in signals)
        lines.append(f"{TITLES.get(metric, metric.upper()):10}{cells}")
    lines.append(
        f"mean ± 95 % interval of {summary['files']} files; WSS and composites at the {summary['scale']} scale"
    )
    left_out = {metric: summary[signals[0]][metric]["left_out"] for metric in METRICS}
    missing = ", ".join(f"{metric} {count}" for metric, count in left_out.items() if count)
    if missing:
        where = " for either signal" if len(signals) > 1 else ""
        lines.append(f"files left out because the measure is undefined{where}: {missing}")
    return "\n".join(lines) + "\n"


def _cell(entry: Mapping[str, float | int | None]) -> str:
    if entry["mean"] is None:
        return "-"
    half_width = "" if entry["half_width"] is None else f" ± {entry['half_width']:.3f}"
    return f"{entry['mean']:.3f}{half_width}"
