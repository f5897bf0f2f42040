"""Rows, means and tables of enhanced recordings."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from seqattn.errors import SeqattnError
from seqattn.experiment import speech_evaluation
from seqattn.experiment.speech_evaluation import evaluate_clips, format_table, summary, write_table
from seqattn.metrics import speech_metrics
from seqattn.metrics.speech import METRICS

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "speech_metrics.npz")


@pytest.fixture(scope="module")
def pairs():
    """Three (name, noisy, clean) of real speech, the last with a shorter clean signal."""
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    signals = [("a_noisy", "fileid_4", 16000), ("b_enhanced", "fileid_26", 24000), ("a_noisy", "fileid_4", 20000)]
    return [
        (
            f"{number}.wav",
            torch.from_numpy(GOLDEN[f"{case}/degraded"][:24000] / 32768).float(),
            torch.from_numpy(GOLDEN[f"audio/{name}/clean"][:samples] / 32768).float(),
        )
        for number, (case, name, samples) in enumerate(signals)
    ]


def halve(waveform):
    """A network that lowers the level."""
    assert waveform.ndim == 2
    assert not torch.is_grad_enabled()
    return 0.5 * waveform


def made_up_rows(*noisy_pesq):
    """Rows whose measures are 1 but for the noisy PESQ."""
    ones = {f"{signal}_{metric}": 1.0 for signal in ("noisy", "enhanced") for metric in METRICS}
    return [
        {"file": f"{number}.wav", "scale": "int16", "seconds": 1.0, **ones, "noisy_pesq": value}
        for number, value in enumerate(noisy_pesq)
    ]


def test_rows_hold_the_measures_of_both_signals(pairs):
    rows = evaluate_clips(pairs, halve, "float")
    assert [row["file"] for row in rows] == ["0.wav", "1.wav", "2.wav"]
    assert [row["seconds"] for row in rows] == [1.0, 1.5, 1.25]
    for row, (_, noisy, clean) in zip(rows, pairs, strict=True):
        assert row["scale"] == "float"
        for signal, waveform in (("noisy", noisy), ("enhanced", 0.5 * noisy)):
            expected = speech_metrics(clean.numpy(), waveform.numpy(), scale="float")
            assert {name: row[f"{signal}_{name}"] for name in METRICS} == pytest.approx(expected, abs=1e-9)


def test_without_a_network_only_the_noisy_signals_are_measured(pairs):
    [row] = evaluate_clips(pairs[:1], None)
    assert set(row) == {"file", "scale", "seconds", *(f"noisy_{metric}" for metric in METRICS)}
    table = format_table(summary([row]))
    assert "noisy" in table
    assert "enhanced" not in table


def test_worker_processes_give_the_same_rows_in_order(pairs, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    read = []

    def reader():
        for pair in pairs:
            read.append(pair[0])
            yield pair

    here = evaluate_clips(pairs, halve)
    there = evaluate_clips(reader(), halve, workers=1)
    assert read == ["0.wav", "1.wav", "2.wav"]
    for row, expected in zip(there, here, strict=True):
        assert row == pytest.approx(expected, abs=1e-9)


def test_a_line_after_every_few_files(pairs, monkeypatch, capsys):
    monkeypatch.setattr(speech_evaluation, "LINE_EVERY", 2)
    evaluate_clips(pairs, halve)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("files 2  noisy_pesq ")
    assert "enhanced_si_sdr" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_the_file_that_cannot_be_measured_is_named(pairs, workers):
    _, noisy, clean = pairs[0]
    with pytest.raises(SeqattnError, match=r"^broken.wav, noisy has NaN"):
        evaluate_clips([("broken.wav", noisy * math.nan, clean)], None, workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_fails_is_left_out_and_told(pairs, workers):
    def read(number):
        if number == 1:
            raise SeqattnError("b.wav cannot be read")
        name, noisy, clean = pairs[number]
        return name, noisy * math.nan if number == 0 else noisy, clean

    errors = []
    [row] = evaluate_clips(map(read, range(3)), None, workers=workers, skip=errors.append)
    assert row["file"] == "2.wav"
    assert sorted(str(error).split()[0].rstrip(",") for error in errors) == ["0.wav", "b.wav"]


def test_the_table_is_a_csv_of_the_rows(tmp_path):
    write_table(tmp_path / "metrics.csv", made_up_rows(1.5, math.nan))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["0.wav", "1.wav"]
    assert [row["noisy_pesq"] for row in rows] == ["1.5", "nan"]
    assert len(rows[0]) == 3 + 2 * len(METRICS)


def test_the_summary_counts_what_it_leaves_out():
    result = summary(made_up_rows(1.0, 2.0, math.nan, 3.0))
    assert (result["files"], result["scale"]) == (4, "int16")
    pesq = result["noisy"]["pesq"]
    assert (pesq["mean"], pesq["count"], pesq["left_out"]) == (2.0, 3, 1)
    assert pesq["half_width"] == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert result["enhanced"]["pesq"] == {"mean": 1.0, "half_width": 0.0, "count": 3, "left_out": 1}
    assert result["noisy"]["stoi"]["count"] == result["enhanced"]["stoi"]["count"] == 4


def test_both_means_are_of_the_files_that_have_both():
    rows = made_up_rows(1.0, math.nan, 3.0, 4.0)
    for row, value in zip(rows, (10.0, 20.0, math.inf, 40.0), strict=True):
        row["enhanced_pesq"] = value
    result = summary(rows)
    assert [result[signal]["pesq"]["mean"] for signal in ("noisy", "enhanced")] == [2.5, 25.0]
    assert [result[signal]["pesq"]["left_out"] for signal in ("noisy", "enhanced")] == [2, 2]


def test_what_does_not_exist_is_null_in_json():
    result = summary(made_up_rows(math.nan))
    assert result["noisy"]["pesq"] == {"mean": None, "half_width": None, "count": 0, "left_out": 1}
    assert result["noisy"]["stoi"]["half_width"] is None
    json.dumps(result, allow_nan=False)


def test_the_text_names_scale_files_and_what_is_left_out():
    text = format_table(summary(made_up_rows(1.0, 2.0, math.nan)))
    lines = text.splitlines()
    assert lines[0].split() == ["noisy", "enhanced"]
    assert lines[1].split() == ["PESQ", "1.500", "±", "6.353", "1.000", "±", "0.000"]
    assert "3 files" in text
    assert "int16 scale" in text
    assert lines[-1] == "files left out because the measure is undefined for either signal: pesq 1"
    assert max(map(len, lines)) < 100


def test_nothing_measured_is_a_mistake():
    with pytest.raises(SeqattnError, match="no recording was measured"):
        summary([])
