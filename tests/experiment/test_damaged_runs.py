"""Run directories that are none, or whose files are damaged, missing or another run's: what the program says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from run_files import contents


@pytest.mark.parametrize("words", [["eval", "classification"], ["predict", "classification"]], ids=["eval", "predict"])
def test_a_run_directory_that_is_none(command, toy, in_tmp, words) -> None:
    file = [toy.folder / "Small_TEST.ts"] if words[0] == "predict" else []
    assert "there is no run directory absent" in command(*words, "absent", *file).error
    (in_tmp / "folder").mkdir()
    assert "folder is not a run directory, it has no config.yaml" in command(*words, "folder", *file).error
    (in_tmp / "folder" / "config.yaml").write_text("task: speech\n")
    assert "is a run of speech, not of classification" in command(*words, "folder", *file).error
    config = {"name": "a", "task": "classification", "data": {"dataset": "Small"}}
    (in_tmp / "folder" / "config.yaml").write_text(yaml.safe_dump(config))
    assert "folder has no results.json: finish the run with --resume folder" in command(*words, "folder", *file).error
    assert {Path(path).name for path in contents(in_tmp)} == {"folder", "config.yaml"}


@pytest.fixture
def run(unequal_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(unequal_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def wider_run(train, tmp_path_factory) -> Path:
    """A finished run of the same data and another width."""
    run = tmp_path_factory.mktemp("wider") / "run"
    wider = ["--set", "model.d_model=32", "--set", "data.folds=1", "--set", "trainer.max_epochs=1"]
    assert train("Unequal", run, *wider).code == 0
    return run


def damaged(run: Path, wider_run: Path, kind: str) -> None:
    best = run / "checkpoints" / "best.ckpt"
    if kind == "text":
        best.write_text("weights")
    elif kind == "cut":
        best.write_bytes(best.read_bytes()[:5000])
    elif kind == "other task":
        torch.save({"state_dict": {"line.weight": torch.zeros(2)}, "hyper_parameters": {"bins": 257}}, best)
    else:
        shutil.copy(wider_run / "checkpoints" / "best.ckpt", best)


DAMAGES = {
    "text": "is not a readable checkpoint",
    "cut": "is not a readable checkpoint",
    "other task": "is a checkpoint of another model (model differs",
    "other width": "another model",
}


@pytest.mark.parametrize("words", [["eval", "classification"], ["predict", "classification"]], ids=["eval", "predict"])
@pytest.mark.parametrize(("kind", "sentence"), DAMAGES.items())
def test_a_checkpoint_of_another_model(command, toy, run, wider_run, in_tmp, words, kind, sentence) -> None:
    damaged(run, wider_run, kind)
    before = contents(run)
    file = [toy.folder / "Unequal_TEST.ts"] if words[0] == "predict" else []
    error = command(*words, run, *file).error
    assert sentence in error
    assert "best.ckpt" in error
    assert contents(run) == before
    assert contents(in_tmp) == {}


def test_a_finished_run_without_its_checkpoint(command, toy, run, in_tmp) -> None:
    best = run / "checkpoints" / "best.ckpt"
    best.unlink()
    for words in (["eval", "classification", run], ["predict", "classification", run, toy.folder / "Unequal_TEST.ts"]):
        error = command(*words).error
        assert f"there is no checkpoint {best}" in error
        assert "put it back, or train the run again" in error
        assert "stopped" not in error
    assert contents(in_tmp) == {}


@pytest.mark.parametrize("noticed_by", ["eval", "predict", "resume"])
def test_damaged_results_are_mended_by_what_the_error_says(command, toy, run, in_tmp, noticed_by) -> None:
    results = run / "results.json"
    whole = json.loads(results.read_text())
    results.write_text(results.read_text()[:40])
    words = {
        "eval": ["eval", "classification", run],
        "predict": ["predict", "classification", run, toy.folder / "Unequal_TEST.ts"],
        "resume": ["train", "classification", "--resume", run],
    }[noticed_by]
    advice = (
        f"{results} is damaged (no JSON object): delete it, and 'seqattn train classification --resume {run}' writes"
    )
    assert advice in command(*words).error
    results.unlink()
    done = command("train", "classification", "--resume", run)
    assert done.code == 0, done
    again = json.loads(results.read_text())
    assert again == whole
    assert json.loads(command("eval", "classification", run).out)["accuracy"] == whole["test"]["accuracy"]


def test_resuming_with_a_checkpoint_of_another_model(command, run, wider_run) -> None:
    (run / "results.json").unlink()
    shutil.copy(wider_run / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
    before = contents(run)
    error = command("train", "classification", "--resume", run).error
    assert "last.ckpt holds another model" in error
    assert contents(run) == before
