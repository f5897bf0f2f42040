"""All measures of one enhanced recording against its clean reference."""

import math

import numpy as np
from numpy.typing import ArrayLike

from seqattn.errors import SeqattnError
from seqattn.metrics.composite import Scale, check_scale, composite_measures
from seqattn.metrics.perceptual import SAMPLE_RATE, pesq_score, stoi_score
from seqattn.metrics.segmental import Values
from seqattn.optional import require

METRICS = ("pesq", "estoi", "stoi", "si_sdr", "ssnr", "wss", "llr", "csig", "cbak", "covl")


def speech_metrics(
    clean: ArrayLike, enhanced: ArrayLike, sample_rate: int = SAMPLE_RATE, scale: Scale = "int16"
) -> dict[str, float]:
    """Return pesq, estoi, stoi, si_sdr (dB), ssnr (dB), wss, llr, csig, cbak and covl of one recording.

    clean, enhanced: (samples,) in [-1, 1]; the longer is cut to the shorter.
    sample_rate: in Hz; both are resampled to 16 kHz.
    scale: the range in which WSS, and so csig, cbak and covl, sees the samples, see `composite_measures`. "float"
        repeats most published tables, which are about 0.08 higher.

    A measure that cannot be taken is NaN, and so are the composites it enters: PESQ of silence, of less than 0.25 s or
    of more than 50 utterances, STOI of less than 0.4 s of speech, SI-SDR of silence.

    Raises:
        SeqattnError: a signal is empty, not (samples,), of integers or not finite; the extra `speech` is missing.
    """
    check_scale(scale)
    if sample_rate < 1:
        raise SeqattnError(f"speech_metrics: sample_rate is {sample_rate}: give the rate of the recordings in Hz")
    reference = _resample(checked_signal(clean, "speech_metrics: clean"), sample_rate)
    estimate = _resample(checked_signal(enhanced, "speech_metrics: enhanced"), sample_rate)
    samples = min(len(reference), len(estimate))
    reference, estimate = reference[:samples], estimate[:samples]
    measured = {
        "pesq": pesq_score(reference, estimate),
        "estoi": stoi_score(reference, estimate, extended=True),
        "stoi": stoi_score(reference, estimate),
    }
    scores = {name: math.nan if score is None else score for name, score in measured.items()}
    scores["si_sdr"] = _si_sdr(reference, estimate)
    return scores | composite_measures(reference, estimate, scores["pesq"], scale)


def checked_signal(samples: ArrayLike, name: str) -> Values:
    """The samples as float64.

    Raises:
        SeqattnError: naming the signal, which is empty, not (samples,), of integers or not finite.
    """
    signal = np.asarray(samples)
    if signal.ndim != 1 or not len(signal):
        raise SeqattnError(f"{name} has shape {signal.shape}: give one channel of at least one sample")
    if not np.issubdtype(signal.dtype, np.floating):
        raise SeqattnError(f"{name} holds {signal.dtype}: divide by full scale (int16: 32768)")
    if not np.isfinite(signal).all():
        raise SeqattnError(f"{name} has NaN or infinite samples: mend or leave out the recording")
    return signal.astype(np.float64)


def _resample(signal: Values, sample_rate: int) -> Values:
    if sample_rate == SAMPLE_RATE:
        return signal
    import torch

    functional = require("torchaudio").functional
    return functional.resample(torch.from_numpy(signal), sample_rate, SAMPLE_RATE).numpy()


def _si_sdr(reference: Values, estimate: Values) -> float:
    # torch takes seconds to import, and a process that only labels with PESQ needs none
    import torch

    from seqattn.metrics.si_sdr import si_sdr

    return si_sdr(torch.from_numpy(reference)[None], torch.from_numpy(estimate)[None]).item()
