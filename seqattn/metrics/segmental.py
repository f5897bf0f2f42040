"""Segmental SNR, weighted spectral slope (WSS) and log-likelihood ratio (LLR), frame by frame at 16 kHz.

As in Y. Hu and P. Loizou, "Evaluation of Objective Quality Measures for Speech Enhancement" (IEEE TASLP 16, 2008), with
the constants of CMGAN's evaluation script (https://github.com/ruizhecao96/CMGAN), by which published figures are made.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Values = NDArray[np.float64]

FRAME = 480  # 30 ms
HOP = 120
BLOCK = 1024  # frames at a time: 20 MB of spectra
FULL_SCALE = 32768.0
FFT_SIZE = 1024
LPC_ORDER = 16
SNR_RANGE = (-10.0, 35.0)  # dB
ENERGY_FLOOR = 1e-10  # of a critical band
EPSILON = float(np.spacing(1.0))
GLOBAL_PEAK, LOCAL_PEAK = 20.0, 1.0  # the weights' constants, D. Klatt (ICASSP 1982), p. 1280

HANN = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, FRAME + 1) / (FRAME + 1)))

# critical bands in Hz
CENTRES = np.array([
    50, 120, 190, 260, 330, 400, 470, 540, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30, 1288.72, 1442.54,
    1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63,
])  # fmt: skip
BANDWIDTHS = np.array([
    70, 70, 70, 70, 70, 70, 70, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154,
    183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136,
])  # fmt: skip


def _critical_bands() -> Values:
    """Gaussian filters of equal weight, cut at -30 dB: (bands, FFT_SIZE / 2)."""
    bins_per_hertz = FFT_SIZE / 16000
    distance = np.arange(FFT_SIZE // 2) - np.floor(CENTRES * bins_per_hertz)[:, None]
    gain = BANDWIDTHS[:1] / BANDWIDTHS
    filters = gain[:, None] * np.exp(-11 * (distance / (BANDWIDTHS * bins_per_hertz)[:, None]) ** 2)
    return np.where(filters > np.exp(-30 / (2 * 2.303)), filters, 0.0)


BANDS = _critical_bands()


def frame_measures(clean: Values, enhanced: Values) -> tuple[Values, Values, Values]:
    """Segmental SNR in dB, WSS and LLR of every frame: three arrays (frames,), frames = floor(samples / 120 - 4).

    clean, enhanced: (samples,) of equal length. WSS takes the integer range ±32768 for full scale, whatever is given.
    LLR is NaN where it is undefined: in frames of digital silence in `clean`.
    """
    blocks = [
        np.stack([segmental_snr(*pair), spectral_slope(*pair), likelihood_ratio(*pair)])  # (3, frames)
        for pair in zip(_frame_blocks(clean), _frame_blocks(enhanced), strict=True)
    ]
    snr, slope, ratio = np.concatenate([np.empty((3, 0)), *blocks], axis=1)
    return snr, slope, ratio


def _frame_blocks(signal: Values) -> Iterator[Values]:
    """Windowed frames, (at most BLOCK, FRAME) at a time."""
    count = len(signal) // HOP - FRAME // HOP
    for start in range(0, count, BLOCK):
        inside = signal[start * HOP : (min(start + BLOCK, count) - 1) * HOP + FRAME]
        yield sliding_window_view(inside, FRAME)[::HOP] * HANN


def segmental_snr(clean: Values, enhanced: Values) -> Values:
    """SNR in dB, clipped to -10 ... 35, of windowed frames (frames, FRAME) -> (frames,)."""
    signal, noise = (clean**2).sum(-1), ((clean - enhanced) ** 2).sum(-1)
    return np.clip(10 * np.log10(signal / (noise + EPSILON) + EPSILON), *SNR_RANGE)


def spectral_slope(clean: Values, enhanced: Values) -> Values:
    """WSS of windowed frames (frames, FRAME) -> (frames,): weighted squared difference of the bands' slopes."""
    clean_energy, enhanced_energy = _band_energies(clean), _band_energies(enhanced)
    weights = (_slope_weights(clean_energy) + _slope_weights(enhanced_energy)) / 2
    difference = np.diff(clean_energy) - np.diff(enhanced_energy)  # (frames, bands - 1)
    return (weights * difference**2).sum(-1) / weights.sum(-1)


def _band_energies(frames: Values) -> Values:
    """Critical-band energies in dB: (frames, FRAME) -> (frames, bands)."""
    spectrum = np.fft.rfft(frames / FULL_SCALE, FFT_SIZE)[:, : FFT_SIZE // 2]
    power = spectrum.real**2 + spectrum.imag**2
    return 10 * np.log10(np.maximum(power @ BANDS.T, ENERGY_FLOOR))


def _slope_weights(energy: Values) -> Values:
    """Klatt's weights of the slopes, large near the frame's highest and the nearest peak: (frames, bands - 1)."""
    rising = np.diff(energy) > 0
    slopes = rising.shape[1]
    index = np.arange(slopes)
    # first slope from here on that falls, and last one up to here that rises
    next_fall = np.minimum.accumulate(np.where(rising, slopes, index)[:, ::-1], axis=1)[:, ::-1]
    last_rise = np.maximum.accumulate(np.where(rising, index, -1), axis=1)
    # the published script takes the band before the peak where the spectrum rises
    peak = np.take_along_axis(energy, np.where(rising, next_fall - 1, last_rise + 1), axis=1)
    here = energy[:, :-1]
    highest = energy.max(-1, keepdims=True)
    return GLOBAL_PEAK / (GLOBAL_PEAK + highest - here) * LOCAL_PEAK / (LOCAL_PEAK + peak - here)


def likelihood_ratio(clean: Values, enhanced: Values) -> Values:
    """LLR of windowed frames (frames, FRAME) -> (frames,): ln of the ratio of two predictors' errors on `clean`.

    NaN where `clean` is silent. Where only `enhanced` is silent it predicts nothing: the error is the frame's energy.
    """
    clean_lags, enhanced_lags = _autocorrelation(clean), _autocorrelation(enhanced)
    enhanced_error = _prediction_error(_predictor(enhanced_lags), clean_lags)
    clean_error = _prediction_error(_predictor(clean_lags), clean_lags)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = enhanced_error / clean_error
        return np.where(ratio > 0, np.log(ratio), np.nan)


def _autocorrelation(rows: Values) -> Values:
    """Lags 0 ... LPC_ORDER of every row: (rows, n) -> (rows, LPC_ORDER + 1)."""
    length = rows.shape[1]
    lags = [np.einsum("rn,rn->r", rows[:, : length - lag], rows[:, lag:]) for lag in range(LPC_ORDER + 1)]
    return np.stack(lags, axis=1)


def _predictor(lags: Values) -> Values:
    """Levinson-Durbin: autocorrelation (frames, order + 1) -> prediction-error filters 1, -a_1 ... -a_order."""
    filters = np.zeros_like(lags)
    filters[:, 0] = 1
    error = lags[:, 0].copy()
    for order in range(1, LPC_ORDER + 1):
        residual = (filters[:, :order] * lags[:, order:0:-1]).sum(-1)
        reflection = np.divide(residual, error, out=np.zeros_like(error), where=error != 0)
        filters[:, : order + 1] -= reflection[:, None] * filters[:, order::-1]
        error *= 1 - reflection**2
    return filters


def _prediction_error(filters: Values, lags: Values) -> Values:
    """The quadratic form a R aᵀ of filters a and the Toeplitz matrix R of the lags: (frames,)."""
    products = _autocorrelation(filters) * lags
    return 2 * products.sum(-1) - products[:, 0]
