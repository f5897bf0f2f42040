"""Runs on health records through the command line: run directory, measures, exact resume, two processes."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from resuming import assert_same, freezing, tensors_of
from run_files import files_of, results_of, table
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from seqattn.data.clinical.schema import read_schema
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.ehr_data import data_module
from seqattn.experiment.ehr_evaluation import load_module
from seqattn.experiment.run_directory import RunDirectory

FILES = {
    *("config.yaml", "metrics.csv", "results.json", "model.safetensors", "predictions.csv", "schema.json"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/learning_curves.png", "figures/risk_curves.png"),
}
MEASURES = ("auroc", "auprc", "average_precision", "f1", "f1_at_threshold", "brier", "ece")


def columns(run: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Risk and label of the TEST stays."""
    rows = table(run / "predictions.csv")
    return tuple(np.array([float(row[name]) for row in rows]) for name in (f"risk_{label}", label))


def finite(value: object) -> bool:
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.fixture(params=["series_run", "fused_run"])
def run(request) -> Path:
    return request.getfixturevalue(request.param)


def test_the_run_directory_is_complete(run: Path) -> None:
    fused = run.name == "fused"
    assert files_of(run) == FILES | ({"note_encoder.npz"} if fused else set())
    for path in (run / "figures").iterdir():
        with Image.open(path) as picture:
            assert np.unique(np.asarray(picture.convert("L"))).size > 10
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["model"]["embed_dim"], config["selection"]) == ("ehr", 8, "auprc")
    assert config["environment"]["packages"]["torch"]
    assert read_schema(run / "schema.json").fitted


def test_the_results_are_complete_and_finite(run: Path) -> None:
    results, rows = results_of(run), table(run / "metrics.csv")
    assert finite(results)
    assert results["selection"] == "best epoch by val_auprc on validation stays; TEST used once"
    best = max(rows, key=lambda row: float(row["val_auprc"]))
    assert results["best_epoch"] == int(best["epoch"])
    assert results["validation"] == {name: float(best[name]) for name in best if name.startswith("val_")}
    assert results["epochs"] == len(rows)
    stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] + 1 == results["best_epoch"]
    module = load_module(RunDirectory(run))
    module.network.load_state_dict(load_file(run / "model.safetensors"))
    assert results["parameters"] == sum(parameter.numel() for parameter in module.network.parameters())
    assert sum(results["stays"].values()) >= 60
    assert results["test"]["stays"] == results["stays"]["test"] == len(table(run / "predictions.csv"))


def test_the_measures_are_scikit_learn_s(run: Path) -> None:
    results = results_of(run)
    each = results["test"].get("per_label") or {results["labels"][0]: results["test"]}
    assert list(each) == results["labels"]
    for name, found in each.items():
        risk, label = columns(run, name)
        assert found["positive"] == label.sum()
        assert found["auroc"] == pytest.approx(roc_auc_score(label, risk), abs=1e-5)
        assert found["average_precision"] == pytest.approx(average_precision_score(label, risk), abs=1e-5)
        assert found["brier"] == pytest.approx(brier_score_loss(label, risk), abs=1e-5)
        assert found["f1"] == pytest.approx(f1_score(label, risk >= 0.5, zero_division=0))
        assert found["f1_at_threshold"] == pytest.approx(f1_score(label, risk >= found["threshold"] - 1e-6), abs=1e-5)
        assert set(found["interval"]) == set(MEASURES)
        assert all(low <= high for low, high in found["interval"].values())
    for name in MEASURES:
        assert results["test"][name] == pytest.approx(np.mean([found[name] for found in each.values()]))


def test_eval_gives_the_same_numbers(run: Path, command) -> None:
    before = {name: (run / name).read_bytes() for name in ("predictions.csv", "model.safetensors", "results.json")}
    done = command("eval", "ehr", run)
    assert done.code == 0, done
    results = results_of(run)
    assert json.loads(done.out) == {"dataset": results["dataset"]} | results["test"]
    assert before == {name: (run / name).read_bytes() for name in before}


def test_the_summary_says_once_what_was_left_out(train_ehr, stay_tables, tmp_path) -> None:
    done = train_ehr(stay_tables, tmp_path / "run", "--set", "data.max_rows=5")
    assert done.out.count("\n") == 1
    assert "data: test AUROC 0." in done.out
    assert f"run directory {tmp_path / 'run'}" in done.out
    lines = done.err.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["train", "valid", "test"]
    left_out = results_of(tmp_path / "run")["left_out"]
    assert left_out["stays without events kept"] == 1
    assert "stays cut to their latest 4 times" in left_out
    assert [f"{count:,} {phrase}" for phrase, count in left_out.items()] == lines[3 : 3 + len(left_out)]
    assert [line.split("  ")[0] for line in lines[3 + len(left_out) :]] == ["epoch 1/2", "epoch 2/2"]


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def test_killed_in_the_third_epoch_and_resumed_equals_uninterrupted(
    fused_run, ehr_fused_options, command, start, tmp_path
) -> None:
    run, marker = tmp_path / "run", tmp_path / "frozen"
    process = start(
        "train",
        "ehr",
        *ehr_fused_options,
        "--out",
        run,
        prelude=freezing("seqattn.tasks.clinical", "ClinicalPrediction", marker),
    )
    try:
        while not marker.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(table(run / "metrics.csv")) == 2
    done = command("predict", "ehr", run, "synthetic", "-o", tmp_path / "p.csv")
    assert "has no results.json: finish the run with --resume" in done.error
    assert "has no results.json" in command("eval", "ehr", run).error
    done = command("train", "ehr", "--resume", run)
    assert done.code == 0, done
    assert [line.split("  ")[0] for line in done.err.splitlines()[-2:]] == ["epoch 3/4", "epoch 4/4"]
    for name in ("best", "last"):
        assert_same(tensors_of(run, name), tensors_of(fused_run, name), name)
    for name in ("model.safetensors", "predictions.csv", "schema.json", "note_encoder.npz"):
        assert (run / name).read_bytes() == (fused_run / name).read_bytes(), name
    tables = [without_seconds(table(path / "metrics.csv")) for path in (run, fused_run)]
    assert tables[0] == tables[1]
    first, second = (without_seconds([results_of(path)]) for path in (run, fused_run))
    assert first == second


def test_a_finished_run_is_neither_overwritten_nor_resumed(series_run, stay_tables, train_ehr, command) -> None:
    before = {name: (series_run / name).read_bytes() for name in files_of(series_run)}
    assert "has finished already" in command("train", "ehr", "--resume", series_run).error
    done = train_ehr(stay_tables, series_run, "--set", "trainer.max_epochs=1")
    assert f"run directory {series_run}-2" in done.out
    assert before == {name: (series_run / name).read_bytes() for name in files_of(series_run)}
    shutil.rmtree(f"{series_run}-2")


def test_data_that_have_changed_are_refused(new_tables, train_ehr, command, tmp_path) -> None:
    rows, run = new_tables.rows(60), tmp_path / "run"
    data = new_tables.write("data", rows)
    assert train_ehr(data, run, "--set", "trainer.max_epochs=1").code == 0
    before = (run / "predictions.csv").read_bytes()
    (data / "events.csv").write_text((data / "events.csv").read_text().replace(",HR,", ",Temp,"))
    assert f"the data are not those that {run} was trained on" in command("eval", "ehr", run).error
    (run / "results.json").unlink()
    assert "the data are not those" in command("train", "ehr", "--resume", run).error
    assert (run / "predictions.csv").read_bytes() == before


@pytest.mark.parametrize("selection", ["f1", "auroc"])
def test_another_measure_selects_and_positive_cases_weigh_more(selection, stay_tables, train_ehr, tmp_path) -> None:
    run = tmp_path / "run"
    options = [
        "--selection",
        selection,
        "--seed",
        1,
        "--set",
        "class_weights=balanced",
        "--set",
        "trainer.max_epochs=3",
    ]
    done = train_ehr(stay_tables, run, *options)
    assert done.code == 0, done
    results, rows = results_of(run), table(run / "metrics.csv")
    assert results["best_epoch"] == int(max(rows, key=lambda row: float(row[f"val_{selection}"]))["epoch"])
    assert results["selection"].startswith(f"best epoch by val_{selection} ")
    data = data_module(RunDirectory(run).read_config(EhrConfig))
    data.setup()
    labels = data.stays.labels[data.train_indices]
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]["positive_weight"]
    np.testing.assert_allclose(weights, (labels == 0).sum(0) / (labels == 1).sum(0), rtol=1e-6)


def test_phenotypes_have_a_result_each(train_ehr, tmp_path) -> None:
    run = tmp_path / "run"
    options = ["data.options={stays: 80, task: pheno}", "trainer.max_epochs=1", "data.note_dim=8"]
    sets = [word for option in options for word in ("--set", option)]
    done = train_ehr("synthetic", run, "--config", "interleaved", *sets)
    assert done.code == 0, done
    results = results_of(run)
    assert len(results["labels"]) == 25
    assert list(results["test"]["per_label"]) == results["labels"]
    assert finite(results)
    rows = table(run / "predictions.csv")
    assert list(rows[0]) == ["id", *(f"risk_{name}" for name in results["labels"]), *results["labels"]]
    known = [found["auroc"] for found in results["test"]["per_label"].values() if found["auroc"] is not None]
    assert results["test"]["auroc"] == pytest.approx(np.mean(known))
    assert set(results["test"]["interval"]) == set(MEASURES)
    low, high = results["test"]["interval"]["brier"]
    assert low < results["test"]["brier"] < high


@pytest.mark.parametrize("model", ["gru-d", "notes", "imputation", "lstm"])
def test_other_models(model, stay_tables, train_ehr, command, tmp_path, monkeypatch) -> None:
    options = {
        "gru-d": ["--config", "gru-d", "--set", "model={name: gru_d, hidden: 8}"],
        "notes": ["--set", "model.modality=notes", "--set", "data.notes=tfidf", "--set", "data.note_dim=4"],
        "imputation": ["--set", "model.branches=imputation", "--set", "data.fill=published"],
        "lstm": ["--set", "model.encoder=lstm", "--set", "model.gate=patient"],
    }[model]
    monkeypatch.setattr("seqattn.experiment.ehr_explain.MOST", 3)
    run = tmp_path / "run"
    done = train_ehr(stay_tables, run, "--set", "trainer.max_epochs=1", *options)
    assert done.code == 0, done
    output = tmp_path / "p.csv"
    done = command("predict", "ehr", run, stay_tables, "-o", output, "--explain")
    if model == "lstm":
        assert done.code == 0, done
        assert len(list((tmp_path / "p-explained").iterdir())) == 3
    else:
        word = "needs a run of the model interleaved, this one is gru_d" if model == "gru-d" else "this run has none"
        assert word in done.error
        assert not output.exists()
        assert not (tmp_path / "p-explained").exists()
        assert command("predict", "ehr", run, stay_tables, "-o", output).code == 0
    assert len(table(output)) == 60


# keeps what every process has in the end
PROCESSES = """
import sys, torch
from seqattn.cli import main
from seqattn.tasks.clinical import ClinicalPrediction
def keep(self):
    torch.save(self.state_dict(), f"{sys.argv[0]}.{self.global_rank}")
ClinicalPrediction.on_train_end = keep
main()
"""


@pytest.mark.slow
def test_two_processes_train_one_network_and_use_every_stay(
    stay_tables, ehr_sets, environment, command, tmp_path
) -> None:
    program, run = tmp_path / "program.py", tmp_path / "run"
    program.write_text(PROCESSES)
    hardware = ["--devices", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    arguments = ["--dataset", stay_tables, "--out", run, *hardware, *ehr_sets("data.validation_fraction=0.25")]
    words = [str(part) for part in (sys.executable, program, "train", "ehr", *arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert files_of(run) == FILES
    assert done.stdout.count("run directory") == 1
    assert done.stderr.count("train: ") == 1
    assert "Warning" not in done.stderr
    weights = [torch.load(f"{program}.{rank}", weights_only=True) for rank in (0, 1)]
    assert_same(*weights)
    results = results_of(run)
    assert results["test"]["stays"] == results["stays"]["test"] == len(table(run / "predictions.csv"))
    config = RunDirectory(run).read_config(EhrConfig, ["trainer.devices=1", "trainer.strategy=auto"])
    module, data = load_module(RunDirectory(run)), data_module(config)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    (logged,) = lightning.Trainer(**options).validate(module, data, verbose=False)
    assert logged == pytest.approx(results["validation"], abs=1e-5)
    assert json.loads(command("eval", "ehr", run).out)["auroc"] == pytest.approx(results["test"]["auroc"])
