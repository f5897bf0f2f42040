"""PESQ and STOI through the packages of the extra `speech`, with one rule for what they cannot measure.

No torch here: worker processes import this module.
"""

import math
import subprocess
import sys
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqattn.optional import require

SAMPLE_RATE = 16000
SURELY_TOO_SHORT = 0.3  # s, for the 30 frames of STOI; pystoi fails on less than one frame
# pesq 0.0.4 has room for 50 utterances of at least 0.4 s with the pause, and overruns it without a check
SURELY_SHORT_ENOUGH = 20  # s
PESQ_PROGRAM = """
import sys, numpy, pesq
reference, degraded = numpy.frombuffer(sys.stdin.buffer.read()).reshape(2, -1)
print(pesq.pesq(16000, reference, degraded, "wb"))
"""


def pesq_score(clean: ArrayLike, enhanced: ArrayLike) -> float | None:
    """Wide-band PESQ (ITU-T P.862.2) of two signals (samples,) at 16 kHz, 1 to 4.64; the level does not matter.

    None where it cannot be measured: a silent or non-finite signal, less than 0.25 s, no utterance found, or so many
    (more than 50) that the package crashes. Signals over 20 s are therefore measured in a process of their own.

    Raises:
        SeqattnError: the package pesq is not installed.
    """
    package = require("pesq")
    reference, degraded = _equal_length(clean, enhanced)
    if not _measurable(reference, degraded):
        return None
    if len(reference) > SURELY_SHORT_ENOUGH * SAMPLE_RATE:
        return _pesq_apart(reference, degraded)
    try:
        score = float(package.pesq(SAMPLE_RATE, reference, degraded, "wb"))
    except package.PesqError:
        return None
    return score if math.isfinite(score) else None


def _pesq_apart(reference: NDArray[np.float64], degraded: NDArray[np.float64]) -> float | None:
    samples = np.stack([reference, degraded]).tobytes()
    done = subprocess.run([sys.executable, "-c", PESQ_PROGRAM], input=samples, capture_output=True, check=False)
    score = float(done.stdout) if done.returncode == 0 else math.nan
    return score if math.isfinite(score) else None


def stoi_score(clean: ArrayLike, enhanced: ArrayLike, extended: bool = False) -> float | None:
    """STOI, or ESTOI with `extended`, of two signals (samples,) at 16 kHz.

    None where it cannot be measured: a silent or non-finite signal, or less than 30 frames (0.4 s) of speech.

    Raises:
        SeqattnError: the package pystoi is not installed.
    """
    package = require("pystoi")
    reference, degraded = _equal_length(clean, enhanced)
    if len(reference) < SURELY_TOO_SHORT * SAMPLE_RATE or not _measurable(reference, degraded):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)  # pystoi then returns 1e-5
        try:
            score = float(package.stoi(reference, degraded, SAMPLE_RATE, extended=extended))
        except RuntimeWarning:
            return None
    return score if math.isfinite(score) else None


def _equal_length(clean: ArrayLike, enhanced: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reference, degraded = np.asarray(clean, np.float64), np.asarray(enhanced, np.float64)
    samples = min(len(reference), len(degraded))
    return reference[:samples], degraded[:samples]


def _measurable(*signals: NDArray[np.float64]) -> bool:
    return all(np.isfinite(signal).all() and signal.any() for signal in signals)
