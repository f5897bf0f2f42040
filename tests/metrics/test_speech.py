"""PESQ, STOI, SI-SDR and all of them together, against stored values (tests/golden/README.md)."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load

from seqattn.errors import SeqattnError
from seqattn.metrics import speech_metrics
from seqattn.metrics.intervals import mean_interval
from seqattn.metrics.perceptual import pesq_score, stoi_score
from seqattn.metrics.si_sdr import si_sdr
from seqattn.metrics.speech import METRICS

golden_pairs = load(Path(__file__).with_name("golden_pairs.py"))
CASES = golden_pairs.CASES


@pytest.fixture
def extra():
    """Skip where the packages of the extra `speech` are absent."""
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")


@pytest.fixture
def batch():
    """References and estimates (3, 400) in float64."""
    generator = torch.Generator().manual_seed(0)
    reference, noise = torch.randn(2, 3, 400, dtype=torch.float64, generator=generator)
    return reference, reference + 0.3 * noise


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("scale", ["int16", "float"])
@pytest.mark.parametrize("case", CASES)
def test_golden_values(case, scale):
    clean, degraded, golden = golden_pairs.read(case)
    scores = speech_metrics(clean, degraded, scale=scale)
    assert tuple(scores) == METRICS
    for name, key in (("pesq", "pesq_wb"), ("estoi", "estoi"), ("stoi", "stoi")):
        assert scores[name] == pytest.approx(golden[key], abs=1e-4, rel=0), name
    assert scores["si_sdr"] == pytest.approx(golden["si_sdr"], abs=1e-6, rel=0)
    for name in ("ssnr", "wss", "llr", "csig", "cbak", "covl"):
        assert scores[name] == pytest.approx(golden_pairs.expected(golden, name, scale), abs=1e-4, rel=0), name


@pytest.mark.usefixtures("extra")
def test_the_longer_signal_is_cut():
    clean, degraded, _ = golden_pairs.read("a_noisy")
    clean, degraded = clean[:16000], degraded[:16000]
    expected = speech_metrics(clean, degraded)
    assert speech_metrics(np.r_[clean, np.ones(100)], degraded) == pytest.approx(expected, abs=1e-9)
    assert speech_metrics(clean, np.r_[degraded, np.ones(5000)]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("extra")
def test_the_level_of_the_output_matters_only_to_ssnr_and_what_it_enters():
    clean, degraded, _ = golden_pairs.read("a_noisy")
    quiet, loud = speech_metrics(clean, 0.5 * degraded), speech_metrics(clean, degraded)
    for name, tolerance in (("pesq", 1e-3), ("estoi", 1e-6), ("stoi", 1e-6), ("si_sdr", 1e-9), ("llr", 1e-9)):
        assert quiet[name] == pytest.approx(loud[name], abs=tolerance), name
    assert abs(quiet["ssnr"] - loud["ssnr"]) > 0.1


@pytest.mark.usefixtures("extra")
def test_other_rates_are_resampled():
    pytest.importorskip("torchaudio")
    time = np.arange(48000) / 48000
    generator = np.random.default_rng(0)
    clean = 0.3 * np.sin(2 * np.pi * 440 * time) * np.sin(2 * np.pi * 4 * time)
    noise = 0.05 * np.sin(2 * np.pi * 1000 * time + generator.uniform())
    high, low = speech_metrics(clean, clean + noise, 48000), speech_metrics(clean[::3], (clean + noise)[::3])
    assert high["si_sdr"] == pytest.approx(low["si_sdr"], abs=0.05)
    assert high["estoi"] == pytest.approx(low["estoi"], abs=0.01)


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("silent", ["clean", "enhanced", "both"])
def test_silence_is_measured_as_nan(silent):
    clean, degraded, _ = golden_pairs.read("a_noisy")
    clean, degraded = clean[:16000], degraded[:16000]
    clean = np.zeros_like(clean) if silent != "enhanced" else clean
    degraded = np.zeros_like(degraded) if silent != "clean" else degraded
    scores = speech_metrics(clean, degraded)
    undefined = {"pesq", "estoi", "stoi", "si_sdr", "csig", "cbak", "covl"} | (
        {"llr"} if silent != "enhanced" else set()
    )
    assert {name for name, value in scores.items() if math.isnan(value)} == undefined


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("samples", [1, 100, 300, 1000, 3900])
def test_a_clip_too_short_is_measured_as_far_as_it_can_be(samples):
    clean, degraded, _ = golden_pairs.read("a_noisy")
    scores = speech_metrics(clean[8000 : 8000 + samples], degraded[8000 : 8000 + samples])
    assert all(math.isnan(scores[name]) for name in ("pesq", "estoi", "stoi", "csig", "cbak", "covl"))
    assert math.isfinite(scores["ssnr"]) == (samples >= 600)


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (np.empty(0), r"enhanced has shape \(0,\)"),
        (np.zeros((2, 16000)), r"enhanced has shape \(2, 16000\)"),
        (np.zeros(16000, np.int16), "enhanced holds int16: divide"),
        (np.r_[np.ones(100), np.nan], "enhanced has NaN or infinite samples"),
        (np.r_[np.ones(100), np.inf], "enhanced has NaN or infinite samples"),
    ],
    ids=["empty", "stereo", "integers", "nan", "infinite"],
)
def test_bad_signals_are_named(signal, words):
    with pytest.raises(SeqattnError, match=words):
        speech_metrics(np.ones(16000), signal)
    with pytest.raises(SeqattnError, match=words.replace("enhanced", "clean")):
        speech_metrics(signal, np.ones(16000))


def test_bad_options_are_named():
    with pytest.raises(SeqattnError, match="scale is 'int8'"):
        speech_metrics(np.ones(16000), np.ones(16000), scale="int8")
    with pytest.raises(SeqattnError, match="sample_rate is 0"):
        speech_metrics(np.ones(16000), np.ones(16000), sample_rate=0)


@pytest.mark.parametrize("name", ["pesq", "pystoi"])
def test_a_missing_package_is_one_sentence(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    measure = pesq_score if name == "pesq" else stoi_score
    with pytest.raises(SeqattnError, match=rf"needs the package {name}: pip install 'seqattn\[speech\]'"):
        measure(np.ones(8000), np.ones(8000))


@pytest.mark.usefixtures("extra")
def test_pesq_alone():
    clean, degraded, golden = golden_pairs.read("a_noisy")
    assert pesq_score(clean, degraded) == pytest.approx(golden["pesq_wb"], abs=1e-4)
    assert pesq_score(clean, 0.01 * degraded) == pytest.approx(golden["pesq_wb"], abs=1e-3)
    assert pesq_score(clean.astype(np.float32), torch.from_numpy(degraded)) == pytest.approx(
        golden["pesq_wb"], abs=1e-4
    )
    assert pesq_score(np.zeros(16000), degraded) is None
    assert pesq_score(clean, np.zeros(16000)) is None
    assert pesq_score(clean[:2000], degraded[:2000]) is None
    assert pesq_score(clean, np.full(len(clean), np.nan)) is None
    assert pesq_score([], []) is None


@pytest.mark.usefixtures("extra")
def test_stoi_alone():
    clean, degraded, golden = golden_pairs.read("a_noisy")
    assert stoi_score(clean, degraded) == pytest.approx(golden["stoi"], abs=1e-4)
    assert stoi_score(clean, degraded, extended=True) == pytest.approx(golden["estoi"], abs=1e-4)
    click = np.zeros(16000)
    click[5000] = 1
    assert stoi_score(click, degraded[:16000]) is None
    assert stoi_score(np.zeros(16000), degraded[:16000]) is None
    assert stoi_score([], []) is None


@pytest.mark.usefixtures("extra")
def test_pesq_of_a_long_recording_is_that_of_the_package():
    import pesq

    clean, degraded, _ = golden_pairs.read("a_noisy")
    clean, degraded = np.tile(clean, 7), np.tile(degraded, 7)
    assert pesq_score(clean, degraded) == pytest.approx(pesq.pesq(16000, clean, degraded, "wb"), abs=1e-6)


@pytest.mark.usefixtures("extra")
def test_a_recording_that_crashes_the_package_is_not_measured():
    burst = np.zeros(6720)  # 0.21 s of sound, 0.21 s of pause
    burst[:3360] = np.random.default_rng(0).standard_normal(3360)
    many = np.tile(burst, 100)
    score = pesq_score(many, 0.5 * many)
    assert score is None or 1 < score < 5  # a package that copes is as good


def test_a_process_that_labels_with_pesq_loads_no_torch():
    code = "import sys, seqattn.metrics.perceptual; print({'torch', 'pesq', 'pystoi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("case", CASES)
def test_si_sdr_golden(case):
    clean, degraded, golden = golden_pairs.read(case)
    pair = torch.from_numpy(np.stack([clean, degraded]))[:, None]
    assert si_sdr(*pair).item() == pytest.approx(golden["si_sdr"], abs=1e-6, rel=0)
    assert si_sdr(*pair.float()).item() == pytest.approx(golden["si_sdr"], abs=1e-4, rel=0)


def test_si_sdr_by_hand():
    reference, estimate = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]])
    assert si_sdr(reference, estimate).item() == pytest.approx(10 * math.log10(4))


def test_si_sdr_does_not_hear_the_level(batch):
    reference, estimate = batch
    expected = si_sdr(reference, estimate)
    torch.testing.assert_close(si_sdr(reference, -7.3 * estimate), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(si_sdr(0.01 * reference, estimate), expected, rtol=1e-10, atol=0)


def test_si_sdr_of_each_clip_is_that_of_the_clip_alone(batch):
    reference, estimate = (signal.clone() for signal in batch)
    lengths = torch.tensor([400, 123, 2])
    for row, length in enumerate(lengths):
        reference[row, length:] = math.nan
        estimate[row, length:] = math.inf
    estimate.requires_grad_()
    values = si_sdr(reference, estimate, lengths)
    for row, length in enumerate(lengths):
        alone = si_sdr(reference[row : row + 1, :length], estimate[row : row + 1, :length])
        torch.testing.assert_close(values[row], alone[0], rtol=1e-9, atol=1e-9)
    values.sum().backward()
    assert estimate.grad.isfinite().all()
    assert not estimate.grad[1, 123:].any()


def test_si_sdr_gradient(batch):
    reference, estimate = (signal[:, :20].clone().requires_grad_() for signal in batch)
    assert torch.autograd.gradcheck(lambda s, e: si_sdr(s, e, torch.tensor([20, 11, 3])), (reference, estimate))


def test_si_sdr_of_silence_and_of_a_perfect_estimate(batch):
    reference, estimate = batch
    assert si_sdr(torch.zeros_like(reference), estimate).isnan().all()
    assert si_sdr(reference, torch.zeros_like(estimate)).isnan().all()
    assert (si_sdr(reference, 2 * reference) == math.inf).all()


def test_si_sdr_names_wrong_shapes(batch):
    reference, estimate = batch
    with pytest.raises(SeqattnError, match=r"reference has shape \(3, 400\), estimate \(3, 399\)"):
        si_sdr(reference, estimate[:, 1:])
    with pytest.raises(SeqattnError, match=r"must be the same \(batch, samples\)"):
        si_sdr(reference[0], estimate[0])


def test_mean_interval():
    # the quantile of 4 degrees of freedom is 2.776445, the deviation of 1 ... 5 is 1.581139
    interval = mean_interval([1, 2, math.nan, 3, 4, 5, math.inf])
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(2.776445 * 1.581139 / math.sqrt(5), abs=1e-5)
    assert (interval.count, interval.left_out) == (5, 2)
    assert mean_interval([2.0]).mean == 2
    assert math.isnan(mean_interval([2.0]).half_width)
    assert math.isnan(mean_interval([math.nan]).mean)
    assert (mean_interval([]).count, mean_interval([]).left_out) == (0, 0)
