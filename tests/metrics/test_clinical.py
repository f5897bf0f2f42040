"""Measures of risk predictions: by hand, by torchmetrics, at the edges."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
    binary_f1_score,
)

from seqattn.errors import SeqattnError
from seqattn.metrics.clinical import best_threshold, bootstrap_intervals, clinical_metrics, macro, reliability


def cases(count=400, seed=0):
    generator = np.random.default_rng(seed)
    label = (generator.random(count) < 0.2).astype(float)
    return np.clip(0.2 + 0.25 * label + 0.2 * generator.standard_normal(count), 0, 1), label


def test_equals_torchmetrics():
    risk, label = cases()
    found = clinical_metrics(risk, label, 0.4)
    p, y = torch.from_numpy(risk), torch.from_numpy(label).long()
    assert found["auroc"] == pytest.approx(binary_auroc(p, y).item(), abs=1e-6)
    assert found["average_precision"] == pytest.approx(binary_average_precision(p, y).item(), abs=1e-6)
    assert found["f1"] == pytest.approx(binary_f1_score(p, y, 0.4).item(), abs=1e-6)
    assert found["brier"] == pytest.approx(((p - y) ** 2).mean().item())
    # torchmetrics calibrates the risk of the label too, over the same bins
    assert found["ece"] == pytest.approx(binary_calibration_error(p, y, n_bins=10).item(), abs=1e-6)


def test_precision_recall_area_by_hand():
    found = clinical_metrics([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    # points (recall, precision): (0, 1), (0.5, 1), (0.5, 1/2), (1, 2/3), (1, 1/2)
    assert found["auprc"] == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)
    assert found["average_precision"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_one_class_has_no_ranking_and_the_rest_is_defined():
    found = clinical_metrics([0.2, 0.4], [0, 0])
    assert all(math.isnan(found[name]) for name in ("auroc", "auprc", "average_precision"))
    assert found["f1"] == 0
    assert best_threshold([0.2, 0.4], [0, 0]) == 0.5


def test_best_threshold_is_best():
    risk, label = cases(seed=3)
    chosen = clinical_metrics(risk, label, best_threshold(risk, label))["f1"]
    assert chosen == max(clinical_metrics(risk, label, threshold)["f1"] for threshold in np.unique(risk))


def test_reliability_of_a_calibrated_risk():
    generator = np.random.default_rng(0)
    risk = generator.random(20_000)
    mean, frequency, count = reliability(risk, generator.random(20_000) < risk)
    assert count.sum() == 20_000
    assert np.abs(mean - frequency).max() < 0.04


def test_intervals_hold_the_value_shrink_with_cases_and_repeat():
    few, many = bootstrap_intervals(*cases(100), draws=100), bootstrap_intervals(*cases(2000), draws=100)
    for name, value in clinical_metrics(*cases(2000)).items():
        low, high = many[name]
        assert low <= value <= high or name == "ece", name  # of a resample it is biased upwards
        assert high - low < few[name][1] - few[name][0], name
    assert many == bootstrap_intervals(*cases(2000), draws=100)


def test_intervals_of_f1_at_another_threshold():
    risk, label = cases(300)
    both = bootstrap_intervals(risk, label, draws=50, chosen=0.3)
    assert both["f1_at_threshold"] == bootstrap_intervals(risk, label, threshold=0.3, draws=50)["f1"]
    assert both["f1_at_threshold"] != both["f1"]
    assert clinical_metrics([0.1, 0.2], [0, 0])["f1"] == 0


def test_macro_leaves_out_what_is_undefined():
    risk, label = np.array([[0.1, 0.3], [0.8, 0.2]]), np.array([[0, 0], [1, 0]])
    assert macro(clinical_metrics, risk, label)["auroc"] == 1
    assert macro(clinical_metrics, risk, label)["brier"] == pytest.approx((0.025 + 0.065) / 2)
    assert math.isnan(macro(clinical_metrics, risk[:, 1:], label[:, 1:])["auroc"])


@pytest.mark.parametrize(
    ("risk", "label", "message"),
    [
        ([0.5], [1, 0], r"risks have shape \(1,\), labels \(2,\)"),
        ([], [], "give one of each for every case"),
        ([0.5], [2], "label 2 is neither 0 nor 1"),
        ([float("nan")], [1], "outside"),
        ([1.5], [1], "give probabilities"),
    ],
)
def test_bad_input(risk, label, message):
    with pytest.raises(SeqattnError, match=message):
        clinical_metrics(risk, label)
