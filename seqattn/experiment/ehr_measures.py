"""What the TEST stays say of a model: measures of each label and their means, with bootstrap intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seqattn.metrics.clinical import best_threshold, bootstrap_intervals, clinical_metrics, macro

Values = NDArray[np.float64]
NOT_MEANS = ("threshold", "positive", "interval")  # of one label alone


def measures_of(
    names: Sequence[str], risk: Tensor, label: Tensor, val_risk: Tensor, val_label: Tensor, draws: int
) -> dict[str, Any]:
    """Measures of (stays, labels) with 95 % intervals over `draws` resamples of the stays, None where undefined.

    Each label's threshold maximises F1 over the validation stays. Of several labels the means, and per_label.
    """
    p, y = risk.double().numpy(), label.double().numpy()
    pairs = zip(val_risk.double().numpy().T, val_label.double().numpy().T, strict=True)
    thresholds = np.array([best_threshold(*pair) for pair in pairs])
    each = [_of_one(p[:, k], y[:, k], float(thresholds[k]), draws) for k in range(len(names))]
    if len(names) == 1:
        return each[0]
    interval = {"interval": _mean_intervals(p, y, thresholds, draws)}
    return _means(each) | interval | {"per_label": dict(zip(names, each, strict=True))}


def number(value: float | None) -> str:
    """Three decimals; a measure that is undefined is a dash."""
    return "-" if value is None else f"{value:.3f}"


def _of_one(risk: Values, label: Values, threshold: float, draws: int) -> dict[str, Any]:
    found: dict[str, Any] = clinical_metrics(risk, label)
    found["threshold"] = threshold
    found["f1_at_threshold"] = clinical_metrics(risk, label, threshold)["f1"]
    found["positive"] = int(label.sum())
    intervals = bootstrap_intervals(risk, label, draws=draws, chosen=threshold)
    found["interval"] = {name: [_finite(low), _finite(high)] for name, (low, high) in intervals.items()}
    return {name: _finite(value) if isinstance(value, float) else value for name, value in found.items()}


def _finite(value: float) -> float | None:
    """NaN, which JSON lacks, as None."""
    return value if math.isfinite(value) else None


def _means(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over labels of every measure, None where it is undefined for all."""
    names = [name for name in entries[0] if name not in NOT_MEANS]
    values = {name: [entry[name] for entry in entries if entry[name] is not None] for name in names}
    return {name: float(np.mean(found)) if found else None for name, found in values.items()}


def _mean_intervals(risk: Values, label: Values, thresholds: Values, draws: int, seed: int = 0) -> dict[str, Any]:
    """95 % percentile intervals of the means over labels: a resample takes all labels of a stay."""
    generator = np.random.default_rng(seed)
    found: list[dict[str, float]] = []
    for _ in range(draws):
        drawn = generator.integers(0, len(label), len(label))
        p, y = risk[drawn], label[drawn]
        found.append(macro(clinical_metrics, p, y) | {"f1_at_threshold": _mean_f1(p >= thresholds, y)})
    values = {name: np.array([draw[name] for draw in found if math.isfinite(draw[name])]) for name in found[0]}
    return {
        name: np.percentile(kept, [2.5, 97.5]).tolist() if len(kept) else [None, None] for name, kept in values.items()
    }


def _mean_f1(predicted: NDArray[np.bool_], label: Values) -> float:
    """Mean over labels of F1, 0 where nothing is positive."""
    total = predicted.sum(0) + label.sum(0)
    return float(np.mean(2 * (label * predicted).sum(0) / np.maximum(total, 1)))
