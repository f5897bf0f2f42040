"""Segmental measures and composites against the published script's values (tests/golden/README.md)."""

import math
from pathlib import Path

import numpy as np
import pytest
from loading import load

from seqattn.errors import SeqattnError
from seqattn.metrics import segmental
from seqattn.metrics.composite import composite_measures, composites, lowest_mean

golden_pairs = load(Path(__file__).with_name("golden_pairs.py"))
CASES = golden_pairs.CASES


def speechlike(samples, seed=0):
    """Clean and noisy test signals with a varying level."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    clean = np.sin(2 * np.pi * 200 * time) * np.sin(2 * np.pi * 3 * time) + 0.01 * generator.standard_normal(samples)
    return 0.3 * clean, 0.3 * clean + 0.05 * generator.standard_normal(samples)


@pytest.mark.parametrize("scale", ["int16", "float"])
@pytest.mark.parametrize("case", CASES)
def test_golden_values(case, scale):
    clean, degraded, golden = golden_pairs.read(case)
    measures = composite_measures(clean, degraded, golden["pesq_wb"], scale)
    for name, value in measures.items():
        assert value == pytest.approx(golden_pairs.expected(golden, name, scale), abs=1e-6, rel=0), name
    assert set(measures) == {"ssnr", "wss", "llr", "csig", "cbak", "covl"}


def test_the_silent_case_is_the_one_the_published_script_gets_wrong():
    clean, degraded, golden = golden_pairs.read("a_silence")
    undefined = np.isnan(segmental.frame_measures(clean, degraded)[2]).sum()
    assert undefined == golden["undefined_llr_frames"]
    assert golden["published_csig_int16"] == golden["published_covl_int16"] == 1
    assert composite_measures(clean, degraded, golden["pesq_wb"])["csig"] > 2


def test_the_scale_matters_to_wss_and_what_it_enters():
    clean, degraded, golden = golden_pairs.read("a_noisy")
    integer, real = (composite_measures(clean, degraded, golden["pesq_wb"], scale) for scale in ("int16", "float"))
    assert integer["wss"] > 2 * real["wss"]
    for name, weight in (("csig", 0.009), ("cbak", 0.007), ("covl", 0.007)):
        assert real[name] - integer[name] == pytest.approx(weight * (integer["wss"] - real["wss"]), abs=1e-9)
    assert integer["llr"] == pytest.approx(real["llr"], abs=1e-9)


@pytest.mark.parametrize(("pesq", "llr", "wss", "ssnr"), [(2.0, 0.5, 30.0, 3.0), (3.1, 0.2, 11.0, 9.0)])
def test_published_formulas(pesq, llr, wss, ssnr):
    ratings = composites(pesq, llr, wss, ssnr)
    assert ratings["csig"] == pytest.approx(3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss)
    assert ratings["cbak"] == pytest.approx(1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr)
    assert ratings["covl"] == pytest.approx(1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss)


def test_composites_stay_within_1_and_5():
    assert set(composites(4.6, 0, 0, 35).values()) == {5.0}
    assert set(composites(1.0, 5, 300, -10).values()) == {1.0}


def test_without_pesq_the_parts_remain():
    measures = composite_measures(*speechlike(8000), math.nan)
    assert all(math.isnan(measures[name]) for name in ("csig", "cbak", "covl"))
    assert all(math.isfinite(measures[name]) for name in ("ssnr", "wss", "llr"))


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (479, 0), (599, 0), (600, 1), (719, 1), (720, 2), (8123, 63)])
def test_frame_count(samples, frames):
    assert [len(values) for values in segmental.frame_measures(*speechlike(samples))] == [frames] * 3


def test_less_than_a_frame_measures_nothing():
    assert all(math.isnan(value) for value in composite_measures(*speechlike(500), 2.0).values())


@pytest.mark.parametrize("block", [1, 7, 62, 63, 64])
def test_blocks_of_frames_join(monkeypatch, block):
    pair = speechlike(8123)
    whole = segmental.frame_measures(*pair)
    monkeypatch.setattr(segmental, "BLOCK", block)
    for joined, expected in zip(segmental.frame_measures(*pair), whole, strict=True):
        np.testing.assert_allclose(joined, expected, rtol=1e-9, atol=1e-9)


def test_peaks_are_found_as_one_would_by_hand():
    energy = np.array([[0.0, 2.0, 5.0, 4.0, 4.0, 7.0]])
    # rising to 5, falling with a flat step, rising again: the script takes the band before a peak it climbs to
    peaks = np.array([[2.0, 2.0, 5.0, 5.0, 4.0]])
    weights = 20 / (20 + 7 - energy[:, :-1]) / (1 + peaks - energy[:, :-1])
    np.testing.assert_allclose(segmental._slope_weights(energy), weights)


def test_an_equal_signal_has_no_distance():
    clean, _ = speechlike(8000)
    snr, slope, ratio = segmental.frame_measures(clean, clean)
    assert set(snr) == {35.0}
    assert np.abs(slope).max() == 0
    assert np.abs(ratio).max() < 1e-9


def test_llr_is_that_of_a_solved_predictor():
    frames = [signal[:480][None] * segmental.HANN for signal in speechlike(480)]
    lags = [np.array([(frame[0, : 480 - k] * frame[0, k:]).sum() for k in range(17)]) for frame in frames]
    toeplitz = [values[np.abs(np.arange(17)[:, None] - np.arange(17))] for values in lags]
    filters = [np.r_[1, -np.linalg.solve(matrix[:16, :16], matrix[0, 1:])] for matrix in toeplitz]
    errors = [row @ toeplitz[0] @ row for row in filters]
    expected = np.log(errors[1] / errors[0])
    np.testing.assert_allclose(segmental.likelihood_ratio(*frames), [expected], rtol=1e-6)


def test_a_silent_output_is_rated_not_left_out():
    clean, _ = speechlike(8000)
    snr, slope, ratio = segmental.frame_measures(clean, np.zeros_like(clean))
    assert np.isfinite([snr, slope, ratio]).all()
    assert ratio.min() > 1  # predicting nothing


def test_lowest_mean_keeps_95_percent():
    assert lowest_mean(np.arange(100.0)[::-1]) == np.arange(95).mean()
    assert math.isnan(lowest_mean(np.empty(0)))


def test_an_unknown_scale_is_named():
    with pytest.raises(SeqattnError, match="scale is 'int32': choose int16 or float"):
        composite_measures(*speechlike(8000), 2.0, "int32")
