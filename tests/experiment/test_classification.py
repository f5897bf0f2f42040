"""Whole runs through the command line: protocols, run directory, metrics, exact resume."""

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_files import FILES, FOLD_FILES, files_of, results_config, results_of, table
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from seqattn.data.ts_file import read_ts
from seqattn.data.uea import UEADataModule
from seqattn.experiment.evaluation import load_module, predict_probabilities
from seqattn.experiment.run_directory import RunDirectory
from seqattn.tasks.classification import TimeSeriesClassification, classification_metrics


def probabilities_of(run: Path) -> np.ndarray:
    rows = table(run / "predictions.csv")
    return np.array([[float(row[name]) for name in row if name.startswith("p_")] for row in rows])


@pytest.fixture(scope="module")
def holdout(unequal_run: Path) -> Path:
    return unequal_run


@pytest.fixture(scope="module")
def folds(train, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("folds") / "run"
    done = train("Small", run, "--set", "trainer.max_epochs=3")
    assert done.code == 0, done
    assert "test accuracy" in done.out
    return run


@pytest.fixture(scope="module")
def paper(train, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("paper") / "run"
    done = train("Equal", run, "--protocol", "paper", "--set", "trainer.max_epochs=4", "--set", "optimizer.lr=0.03")
    assert done.code == 0, done
    return run


@pytest.fixture(params=["holdout", "folds", "paper"])
def run(request) -> Path:
    return request.getfixturevalue(request.param)


def test_the_run_directory_is_complete(run: Path) -> None:
    folds = results_of(run)["folds"]
    extra = {f"checkpoints/fold-{n + 1}/{name}" for n in range(folds) for name in FOLD_FILES} if folds > 1 else set()
    assert files_of(run) == FILES | extra
    for path in (run / "figures").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert np.unique(np.asarray(picture.convert("L"))).size > 10
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["hidden"] == 8
    assert config["environment"]["packages"]["torch"]


def test_the_metrics_are_scikit_learn_s(run: Path, toy) -> None:
    results, rows = results_of(run), table(run / "predictions.csv")
    expected = read_ts(toy.folder / f"{results['dataset']}_TEST.ts").labels.tolist()
    assert [row["case"] for row in rows] == [str(case + 1) for case in range(len(expected))]
    assert list(rows[0]) == ["case", "predicted", *(f"p_{name}" for name in toy.classes)]
    predicted = [row["predicted"] for row in rows]
    order = sorted(toy.classes)
    scores = probabilities_of(run)[:, [toy.classes.index(name) for name in order]]
    test = results["test"]
    assert test["cases"] == len(expected)
    assert test["accuracy"] == pytest.approx(accuracy_score(expected, predicted), abs=1e-6)
    assert test["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(expected, predicted), abs=1e-6)
    assert test["macro_f1"] == pytest.approx(f1_score(expected, predicted, average="macro"), abs=1e-6)
    scores /= scores.sum(1, keepdims=True)
    auroc = roc_auc_score(expected, scores, multi_class="ovr", average="macro", labels=order)
    assert test["auroc"] == pytest.approx(auroc, abs=1e-6)


def test_a_class_without_a_test_case_counts_in_no_mean() -> None:
    generator = np.random.default_rng(0)
    labels = np.array([0, 1] * 10)
    scores = generator.dirichlet((1, 1, 1), size=20)
    found = classification_metrics(torch.from_numpy(scores), torch.from_numpy(labels))
    predicted = scores.argmax(1)
    assert 2 in predicted
    expected = np.mean([(predicted[labels == name] == name).mean() for name in (0, 1)])
    assert found["balanced_accuracy"] == pytest.approx(expected)
    aurocs = [roc_auc_score(labels == name, scores[:, name]) for name in (0, 1)]
    assert found["auroc"] == pytest.approx(np.mean(aurocs))


def test_eval_gives_the_same_numbers(run: Path, command) -> None:
    before = {name: (run / name).read_bytes() for name in ("predictions.csv", "model.safetensors", "results.json")}
    done = command("eval", "classification", run)
    assert done.code == 0, done
    results = results_of(run)
    assert json.loads(done.out) == {name: results[name] for name in ("dataset", "protocol")} | results["test"]
    assert before == {name: (run / name).read_bytes() for name in before}


def test_the_checkpoint_and_the_weights_load_without_arguments(run: Path, toy) -> None:
    series = read_ts(toy.folder / f"{results_of(run)['dataset']}_TEST.ts")
    module = TimeSeriesClassification.load_from_checkpoint(run / "checkpoints" / "best.ckpt", map_location="cpu")
    found = predict_probabilities(module, series, 64)
    np.testing.assert_allclose(found.numpy(), probabilities_of(run), rtol=0, atol=6e-7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    module.load_state_dict(load_file(run / "model.safetensors"))
    assert torch.equal(predict_probabilities(module, series, 64), found)


def test_holdout_chooses_the_best_validation_epoch(holdout: Path) -> None:
    results, rows = results_of(holdout), table(holdout / "metrics.csv")
    assert results["protocol"] == "holdout"
    assert results["selection"] == "best epoch on a stratified validation split of TRAIN; TEST used once"
    assert (results["folds"], results["epochs"], results["validation"]["is_test"]) == (1, 6, False)
    assert [row["epoch"] for row in rows] == list("123456")
    best = max(rows, key=lambda row: float(row["val_score"]))
    assert results["best_epoch"] == int(best["epoch"])
    assert results["validation"]["val_accuracy"] == pytest.approx(float(best["val_accuracy"]))
    stored = torch.load(holdout / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] + 1 == results["best_epoch"]
    data = UEADataModule("Unequal", results_config(holdout)["data"]["data_dir"])
    data.setup()
    found = load_module(RunDirectory(holdout)).probabilities(data.val_dataloader()).argmax(-1)
    expected = torch.cat([batch["label"] for batch in data.val_dataloader()])
    assert (found == expected).float().mean().item() == pytest.approx(results["validation"]["val_accuracy"])


def test_normalisation_and_periods_come_from_the_training_part_alone(holdout: Path) -> None:
    data = UEADataModule("Unequal", results_config(holdout)["data"]["data_dir"])
    data.setup()
    assert 0 < len(data.val_indices) < data.train_set.cases
    module = load_module(RunDirectory(holdout))
    assert (module.hparams["mean"], module.hparams["std"]) == data.statistics()


def test_patience_ends_a_single_split_as_soon_as_the_validation_score_has_stood_still(train, tmp_path) -> None:
    options = ["data.folds=1", "trainer.max_epochs=40", "trainer.patience=2"]
    done = train("Equal", tmp_path / "run", *(word for option in options for word in ("--set", option)))
    assert done.code == 0, done
    scores = [float(row["val_score"]) for row in table(tmp_path / "run" / "metrics.csv")]
    best = scores.index(max(scores)) + 1
    assert len(scores) == best + 2 < 40
    results = results_of(tmp_path / "run")
    assert (results["best_epoch"], results["epochs"]) == (best, best + 2)


def test_folds_choose_the_number_of_epochs_and_then_all_of_train_trains(folds: Path) -> None:
    results = results_of(folds)
    assert results["protocol"] == "holdout"
    assert results["selection"].startswith("number of epochs by stratified k-fold on TRAIN, retrained on all of TRAIN")
    assert results["folds"] == 4
    tables = [table(folds / "checkpoints" / f"fold-{number}" / "metrics.csv") for number in (1, 2, 3, 4)]
    assert [len(rows) for rows in tables] == [3] * 4
    scores = np.array([[float(row["val_score"]) for row in rows] for rows in tables]).mean(0)
    assert results["best_epoch"] == results["epochs"] == scores.argmax() + 1
    rows = table(folds / "metrics.csv")
    assert len(rows) == results["epochs"]
    assert "val_accuracy" not in rows[0]
    best, last = (load_weights(folds / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in last)
    data = UEADataModule("Small", results_config(folds)["data"]["data_dir"], fold=None)
    data.setup()
    assert len(data.train_indices) == 15
    module = load_module(RunDirectory(folds))
    assert (module.hparams["mean"], module.hparams["std"]) == data.statistics()


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_paper_reports_the_best_test_epoch_and_says_so(paper: Path) -> None:
    results, rows = results_of(paper), table(paper / "metrics.csv")
    assert results["protocol"] == "paper"
    assert results["selection"] == "best epoch on TEST, as published (optimistic)"
    assert results["validation"]["is_test"] is True
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert results["test"]["accuracy"] == pytest.approx(max(accuracies))
    assert results["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert results["last_epoch_accuracy"] == pytest.approx(accuracies[-1])


def test_one_channel_in_arff_files_trains_and_is_predicted(train, command, new_toy, tmp_path) -> None:
    attributes = [f"@attribute step{step} numeric" for step in range(16)]
    header = ["@relation Toy", *attributes, f"@attribute target {{{','.join(new_toy.classes)}}}", "@data"]
    for split, seed in (("TRAIN", 7), ("TEST", 8)):
        lines = [line.replace(":", ",") for line in new_toy.lines(18, seed, channels=1)]
        (new_toy.folder / f"Toy_{split}.arff").write_text("\n".join([*header, *lines]) + "\n")
    run, output = tmp_path / "run", tmp_path / "p.csv"
    done = train("Toy", run, "--set", "data.folds=1", data_dir=new_toy.folder)
    assert done.code == 0, done
    assert load_module(RunDirectory(run)).network.in_channels == 1
    assert command("predict", "classification", run, new_toy.folder / "Toy_TEST.arff", "-o", output).code == 0
    assert output.read_bytes() == (run / "predictions.csv").read_bytes()


def test_a_second_run_never_overwrites_and_a_finished_one_does_not_resume(folds: Path, train, command) -> None:
    before = {name: (folds / name).read_bytes() for name in files_of(folds)}
    done = train("Small", folds, "--set", "trainer.max_epochs=1", "--set", "data.folds=2")
    assert done.code == 0
    assert f"run directory {folds}-2" in done.out
    assert "has finished already" in command("train", "classification", "--resume", folds).error
    assert before == {name: (folds / name).read_bytes() for name in files_of(folds)}


# a run that stops for good in the middle of an epoch, for the test to kill
FREEZE = """
import pathlib, time
from seqattn.tasks.classification import TimeSeriesClassification as Task
step = Task.training_step
def frozen_step(self, batch, batch_idx):
    folder = pathlib.Path(self.trainer.checkpoint_callback.dirpath).name
    if (folder, self.current_epoch, batch_idx) == ({folder!r}, {epoch}, 1):
        pathlib.Path({marker!r}).touch()
        time.sleep(600)
    return step(self, batch, batch_idx)
Task.training_step = frozen_step
"""


def kill_when_frozen(process: subprocess.Popen[str], marker: Path) -> None:
    try:
        while not marker.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def without_seconds(path: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table(path)]


def assert_same_run(first: Path, second: Path, tables: Sequence[str]) -> None:
    for name in ("model.safetensors", "predictions.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in tables:
        assert without_seconds(first / name) == without_seconds(second / name), name
    results = [
        {key: value for key, value in results_of(run).items() if not key.startswith("seconds")}
        for run in (first, second)
    ]
    assert results[0] == results[1]
    assert files_of(first) == files_of(second)


def test_six_epochs_killed_in_the_fourth_and_resumed_equal_six_epochs(
    holdout, command, start, tiny_arguments, tmp_path
) -> None:
    options = ["--set", "data.folds=1", "--set", "trainer.max_epochs=6"]
    prelude = FREEZE.format(folder="checkpoints", epoch=3, marker=str(tmp_path / "frozen"))
    arguments = [*tiny_arguments("Unequal", tmp_path / "a"), *options]
    kill_when_frozen(start("train", "classification", *arguments, prelude=prelude), tmp_path / "frozen")
    assert len(table(tmp_path / "a" / "metrics.csv")) == 3
    assert not (tmp_path / "a" / "results.json").exists()
    done = command("train", "classification", "--resume", tmp_path / "a")
    assert done.code == 0, done
    assert [line.split("  ")[0] for line in done.err.splitlines()] == ["epoch 4/6", "epoch 5/6", "epoch 6/6"]
    assert_same_run(holdout, tmp_path / "a", ["metrics.csv"])


def test_cross_validation_killed_in_the_second_fold_and_resumed_equals_the_whole(
    folds, command, start, tiny_arguments, tmp_path
) -> None:
    options = ["--set", "trainer.max_epochs=3"]
    prelude = FREEZE.format(folder="fold-2", epoch=1, marker=str(tmp_path / "frozen"))
    arguments = [*tiny_arguments("Small", tmp_path / "a"), *options]
    kill_when_frozen(start("train", "classification", *arguments, prelude=prelude), tmp_path / "frozen")
    assert len(table(tmp_path / "a" / "checkpoints" / "fold-2" / "metrics.csv")) == 1
    done = command("train", "classification", "--resume", tmp_path / "a")
    assert done.code == 0, done
    assert [line.split("  ")[0] for line in done.err.splitlines()][:5] == [
        *("epoch 2/3", "epoch 3/3"),
        *("epoch 1/3", "epoch 2/3", "epoch 3/3"),
    ]
    tables = [f"checkpoints/fold-{number}/metrics.csv" for number in (1, 2, 3, 4)]
    assert_same_run(folds, tmp_path / "a", ["metrics.csv", *tables])
