"""CSIG, CBAK and COVL: ratings of signal, background and overall quality, predicted from PESQ, LLR, WSS and SSNR.

The formulas of Y. Hu and P. Loizou (IEEE TASLP 16, 2008) with the constants in use since.
"""

from typing import Literal, get_args

import numpy as np

from seqattn.errors import SeqattnError
from seqattn.metrics.segmental import FULL_SCALE, Values, frame_measures

Scale = Literal["int16", "float"]

KEPT = 0.95  # of the frames, those of the lowest distance


def check_scale(scale: str) -> None:
    """Raise SeqattnError unless `scale` is a Scale."""
    if scale not in get_args(Scale):
        raise SeqattnError(f"scale is {scale!r}: choose int16 or float")


def composite_measures(clean: Values, enhanced: Values, pesq: float, scale: Scale = "int16") -> dict[str, float]:
    """ssnr, wss, llr, csig, cbak and covl of two signals (samples,) of equal length at 16 kHz.

    clean, enhanced: in [-1, 1].
    pesq: wide-band PESQ of the pair; NaN makes the three composites NaN.
    scale: the range in which WSS sees the samples. "int16" multiplies them by 32768, as reading integer wav files does.
        "float" leaves them as they are, as most published enhanced rows do: WSS is then far too small and the
        composites about 0.08 too high.

    Frames of digital silence in `clean`, where LLR is undefined, are left out of LLR; the published script reports
    CSIG = COVL = 1 where they are more than 5 %. A measure without a frame is NaN.
    """
    check_scale(scale)
    factor = FULL_SCALE if scale == "int16" else 1.0
    snr, slope, ratio = frame_measures(clean * factor, enhanced * factor)
    ssnr = float(snr.mean()) if len(snr) else np.nan
    wss, llr = lowest_mean(slope), lowest_mean(ratio[~np.isnan(ratio)])
    return {"ssnr": ssnr, "wss": wss, "llr": llr, **composites(pesq, llr, wss, ssnr)}


def composites(pesq: float, llr: float, wss: float, ssnr: float) -> dict[str, float]:
    """csig, cbak and covl, each clipped to 1 ... 5; NaN where a part is NaN."""
    ratings = {
        "csig": 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss,
        "cbak": 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr,
        "covl": 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss,
    }
    return {name: float(np.clip(value, 1, 5)) for name, value in ratings.items()}


def lowest_mean(distances: Values) -> float:
    """Mean of the lowest 95 % of the distances (frames,); NaN where there is none."""
    kept = np.sort(distances)[: round(len(distances) * KEPT)]
    return float(kept.mean()) if len(kept) else np.nan
