"""Whole runs of the models around a sequence layer: train, evaluate, predict, resume, and what they refuse."""

import json
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from seqattn.experiment.config import ClassificationConfig
from seqattn.experiment.evaluation import load_module
from seqattn.experiment.run_directory import RunDirectory
from seqattn.tasks.classification import TimeSeriesClassification

SMALL = (
    "model.d_model=8",
    "model.depth=2",
    "data.batch_size=8",
    "data.folds=1",
    "optimizer.lr=0.02",
    "optimizer.warmup_epochs=0",
)


@pytest.fixture(scope="module")
def arguments(toy):
    """Options of a small network on the series of unequal length: arguments(model, out, KEY=VALUE ...)."""

    def of(model: str, out: Path, *sets: str) -> list[str]:
        words = [word for key in (*SMALL, "trainer.max_epochs=2", *sets) for word in ("--set", key)]
        return ["--model", model, "--dataset", "Unequal", "--data-dir", str(toy.folder), "--out", str(out), *words]

    return of


@pytest.fixture(scope="module", params=["lbmamba", "attention", "wersa"])
def run(request, command, arguments, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "run"
    done = command("train", "classification", *arguments(request.param, path, "trainer.max_epochs=4"))
    assert done.code == 0, done
    assert done.out.startswith("Unequal: test accuracy")
    return path


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def test_results_hold_no_periods_and_evaluation_repeats_them(run, command) -> None:
    results = results_of(run)
    assert results["model"] == results["config"]
    assert "periods" not in results
    assert results["parameters"] == sum(
        weight.numel() for weight in load_module(RunDirectory(run)).network.parameters()
    )
    done = command("eval", "classification", run)
    assert done.code == 0, done
    assert json.loads(done.out) == {name: results[name] for name in ("dataset", "protocol")} | results["test"]


def test_a_checkpoint_loads_without_arguments(run) -> None:
    module = TimeSeriesClassification.load_from_checkpoint(run / "checkpoints" / "best.ckpt", map_location="cpu")
    assert {name: value.tolist() for name, value in module.state_dict().items()} == {
        name: value.tolist() for name, value in weights_of(run).items()
    }


def test_predictions_do_not_depend_on_the_other_series_of_the_file(run, command, toy, tmp_path) -> None:
    lines = toy.lines(5, 20, unequal=True)
    together = toy.write_file(tmp_path / "all.ts", lines, equal=False)
    alone = [toy.write_file(tmp_path / f"{case}.ts", [line], equal=False) for case, line in enumerate(lines)]
    tables = []
    for file in (together, *alone):
        done = command("predict", "classification", run, file, "-o", tmp_path / "p.csv")
        assert done.code == 0, done
        tables.append(np.loadtxt(tmp_path / "p.csv", delimiter=",", skiprows=1, usecols=(2, 3, 4), ndmin=2))
    np.testing.assert_allclose(np.concatenate(tables[1:]), tables[0], rtol=0, atol=1.5e-6)
    assert np.ptp(tables[0], axis=0).max() > 0.02


def test_explain_is_for_mptsnet(run, command, toy, tmp_path) -> None:
    file = toy.write_file(tmp_path / "new.ts", toy.lines(2, 20), equal=True)
    error = command("predict", "classification", run, file, "-o", tmp_path / "p.csv", "--explain").error
    assert error == f"error: --explain needs an MPTSNet run, this one is {results_of(run)['model']}\n"
    assert not (tmp_path / "p.csv").exists()


def test_a_stopped_run_resumes_to_the_same_weights(run, command, arguments, tmp_path, monkeypatch) -> None:
    step = TimeSeriesClassification.training_step

    def stopping_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (2, 1):
            raise RuntimeError("stopped")
        return step(self, batch, batch_idx)

    options = arguments(results_of(run)["model"], tmp_path / "a", "trainer.max_epochs=4")
    with monkeypatch.context() as patch:
        patch.setattr(TimeSeriesClassification, "training_step", stopping_step)
        with pytest.raises(RuntimeError, match="stopped"):
            command("train", "classification", *options)
    assert not (tmp_path / "a" / "results.json").exists()
    done = command("train", "classification", "--resume", tmp_path / "a")
    assert done.code == 0, done
    assert [line.split("  ")[0] for line in done.err.splitlines()] == ["epoch 3/4", "epoch 4/4"]
    whole, resumed = weights_of(run), weights_of(tmp_path / "a")
    assert [name for name, weight in whole.items() if not torch.equal(weight, resumed[name])] == []


def test_a_checkpoint_of_another_window_is_refused(command, arguments, tmp_path) -> None:
    done = command("train", "classification", *arguments("lbmamba", tmp_path / "a", "model.window=full"))
    assert done.code == 0, done
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert config["model"]["window"] == "full"
    config["model"]["window"] = 4
    (tmp_path / "a" / "config.yaml").write_text(yaml.safe_dump(config))
    assert "window differs" in command("eval", "classification", tmp_path / "a").error


def test_learned_positions_refuse_series_longer_than_the_table(command, arguments, toy, tmp_path) -> None:
    done = command("train", "classification", *arguments("mamba", tmp_path / "a", "model.positions=learned"))
    assert done.code == 0, done
    longer = toy.write_file(tmp_path / "longer.ts", toy.lines(3, 20, steps=40), equal=True)
    error = command("predict", "classification", tmp_path / "a", longer, "-o", tmp_path / "p.csv").error
    assert "longer.ts, case 1: 40 steps, but this network takes at most 16" in error
    assert "train with model.positions=sinusoidal" in error


@pytest.mark.parametrize(
    ("model", "sets", "words"),
    [
        ("attention", "model.heads=3", "3 heads do not divide d_model=8"),
        ("lbmamba", "model.patch_size=0", "model.patch_size = 0 on the command line"),
        ("mamba", "model.heads=2", "unknown configuration key 'model.heads' on the command line"),
    ],
)
def test_options_that_cannot_be(command, arguments, in_tmp, model, sets, words) -> None:
    assert words in command("train", "classification", *arguments(model, in_tmp / "run", sets)).error
    assert list(in_tmp.iterdir()) == []


@pytest.mark.slow
def test_two_processes_train(arguments, environment, tmp_path) -> None:
    program = Path(sysconfig.get_path("scripts")) / "seqattn"
    options = [*arguments("lbmamba", tmp_path / "run"), "--devices", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    command = [program, "train", "classification", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert RunDirectory(tmp_path / "run").read_config(ClassificationConfig).trainer.devices == 2
