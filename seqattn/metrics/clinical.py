"""Measures of risk predictions: ranking, decisions at a threshold, calibration, and their bootstrap intervals."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from seqattn.errors import SeqattnError

Values = NDArray[np.float64]
BINS = 10
RANKING = ("auroc", "auprc", "average_precision")
METRICS = (*RANKING, "f1", "brier", "ece")


def clinical_metrics(risk: ArrayLike, label: ArrayLike, threshold: float = 0.5) -> dict[str, float]:
    """Return auroc, auprc (trapezoid), average_precision, f1 at `threshold`, brier and ece of one binary label.

    risk: (cases,) probabilities. label: (cases,) 0 or 1. auprc is the trapezoid area under the precision-recall curve,
    as publications report it; average_precision, its step-wise form, is never above what can be reached. What needs
    both classes is NaN where there is one.

    Raises:
        SeqattnError: shapes differ, there is no case, a label is neither 0 nor 1, or a risk lies outside [0, 1].
    """
    p, y = _checked(risk, label)
    ranked = {name: float("nan") for name in RANKING}
    if 0 < y.sum() < len(y):
        precision, recall, _ = precision_recall_curve(y, p)
        ranked = {
            "auroc": float(roc_auc_score(y, p)),
            "auprc": float(auc(recall, precision)),
            "average_precision": float(average_precision_score(y, p)),
        }
    return ranked | {
        "f1": _f1(p, y, threshold),
        "brier": float(np.mean((p - y) ** 2)),
        "ece": expected_calibration_error(p, y),
    }


def expected_calibration_error(risk: ArrayLike, label: ArrayLike, bins: int = BINS) -> float:
    """Mean distance of risk and frequency over equal-width bins, weighted by their cases (arXiv:1706.04599, eq. 3)."""
    centre, frequency, count = reliability(risk, label, bins)
    return float(np.sum(count * np.abs(centre - frequency)) / np.sum(count))


def reliability(risk: ArrayLike, label: ArrayLike, bins: int = BINS) -> tuple[Values, Values, Values]:
    """Mean risk, frequency of the label and cases of every equal-width bin that holds a case."""
    p, y = _checked(risk, label)
    place = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins).astype(float)
    held = count > 0
    mean = np.bincount(place, p, bins)[held] / count[held]
    return mean, np.bincount(place, y, bins)[held] / count[held], count[held]


def best_threshold(risk: ArrayLike, label: ArrayLike) -> float:
    """The threshold with the highest F1, to be chosen on validation data; 0.5 where a class is absent."""
    p, y = _checked(risk, label)
    if not 0 < y.sum() < len(y):
        return 0.5
    precision, recall, thresholds = precision_recall_curve(y, p)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return float(thresholds[np.argmax(f1[:-1])])


def bootstrap_intervals(
    risk: ArrayLike, label: ArrayLike, threshold: float = 0.5, draws: int = 1000, seed: int = 0,
    chosen: float | None = None,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """95 % percentile interval of every measure of `clinical_metrics`, over resampled cases.

    chosen: another threshold, whose F1 is f1_at_threshold.
    Draws without both classes are left out; NaN where every one is.
    """
    p, y = _checked(risk, label)
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in (*METRICS, *([] if chosen is None else ["f1_at_threshold"]))}
    for _ in range(draws):
        drawn = generator.integers(0, len(y), len(y))
        measures = clinical_metrics(p[drawn], y[drawn], threshold)
        if chosen is not None:
            measures["f1_at_threshold"] = _f1(p[drawn], y[drawn], chosen)
        for name, value in measures.items():
            if np.isfinite(value):
                found[name].append(value)
    return {name: _interval(values) for name, values in found.items()}


def macro(measure: Callable[[Values, Values], dict[str, float]], risk: ArrayLike, label: ArrayLike) -> dict[str, float]:
    """Mean over labels of a measure of each, (cases, labels); NaN does not count, and is the mean of none."""
    p, y = np.asarray(risk, float), np.asarray(label, float)
    each = [measure(p[:, index], y[:, index]) for index in range(p.shape[1])]
    found = {name: [entry[name] for entry in each if np.isfinite(entry[name])] for name in each[0]}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}


def _f1(risk: Values, label: Values, threshold: float) -> float:
    """0 where nothing is positive, neither label nor prediction."""
    predicted = risk >= threshold
    total = predicted.sum() + label.sum()
    return float(2 * label[predicted].sum() / total) if total else 0.0


def _interval(values: list[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _checked(risk: ArrayLike, label: ArrayLike) -> tuple[Values, Values]:
    p, y = np.asarray(risk, float), np.asarray(label, float)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise SeqattnError(f"risks have shape {p.shape}, labels {y.shape}: give one of each for every case")
    if not np.isin(y, (0, 1)).all():
        raise SeqattnError(f"label {y[~np.isin(y, (0, 1))][0]:g} is neither 0 nor 1: measure each label by itself")
    if not ((p >= 0) & (p <= 1)).all():
        raise SeqattnError("a risk is NaN or lies outside [0, 1]: give probabilities")
    return p, y
