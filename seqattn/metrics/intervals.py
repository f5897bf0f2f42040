"""Means with confidence intervals, which say how much they left out."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its 95 % interval, mean ± half_width; the values counted and those left out for not being finite."""

    mean: float
    half_width: float
    count: int
    left_out: int


def mean_interval(values: ArrayLike) -> MeanInterval:
    """Mean and half the width of the 95 % t-interval of the finite values of (n,).

    The mean of no value is NaN, the half width of fewer than two is NaN.
    """
    given = np.asarray(values, np.float64)
    finite = given[np.isfinite(given)]
    count = len(finite)
    mean = float(finite.mean()) if count else math.nan
    half_width = math.nan
    if count > 1:
        quantile = stdtrit(count - 1, (1 + CONFIDENCE) / 2)
        half_width = float(quantile * finite.std(ddof=1) / math.sqrt(count))
    return MeanInterval(mean, half_width, count, len(given) - count)
