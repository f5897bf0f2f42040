import errno
import os
import re
import resource
import stat

import pytest
import torch
import yaml

from seqattn.errors import SeqattnError
from seqattn.experiment import environment
from seqattn.experiment.config import ClassificationConfig, Config
from seqattn.experiment.run_directory import RUN_VARIABLE, RunDirectory, atomic_write, atomic_write_text

CONFIG = ClassificationConfig(name="x", data={"dataset": "BasicMotions"})


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for variable in ("RANK", "LOCAL_RANK", "NODE_RANK", RUN_VARIABLE):
        monkeypatch.setenv(variable, "0")
        monkeypatch.delenv(variable)


def test_the_default_folder_and_its_followers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(RunDirectory.create(None, "classification", "a").path) for _ in range(3)]
    assert names == ["runs/classification/a", "runs/classification/a-2", "runs/classification/a-3"]


def test_an_empty_folder_is_used_and_a_full_one_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty", "t", "n").path.name == "empty"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert RunDirectory.create(tmp_path / "full", "t", "n").path.name == "full-2"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_a_helper_process_uses_the_folder_of_the_first(tmp_path, monkeypatch):
    first = RunDirectory.create(tmp_path / "a", "t", "n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    second = RunDirectory.create(tmp_path / "a", "t", "n")
    assert second.path == first.path
    second.write_results({"accuracy": 1.0})
    second.write_config(CONFIG)
    assert not second.results.exists()
    assert not second.config.exists()


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SeqattnError, match="is a file, not a folder"):
        RunDirectory.create(tmp_path / "file", "t", "n")
    with pytest.raises(SeqattnError, match="choose a folder"):
        RunDirectory.create(tmp_path / "file" / "below", "t", "n")


def test_only_a_run_opens(tmp_path):
    with pytest.raises(SeqattnError, match="there is no run directory"):
        RunDirectory.open(tmp_path / "absent")
    with pytest.raises(SeqattnError, match=r"it has no config\.yaml"):
        RunDirectory.open(tmp_path)


def test_the_configuration_comes_back_with_its_environment_beside_it(tmp_path):
    run = RunDirectory.create(tmp_path / "a", "t", "n")
    run.write_config(CONFIG)
    assert RunDirectory.open(run.path).read_config(ClassificationConfig) == CONFIG
    recorded = yaml.safe_load(run.config.read_text())["environment"]
    assert recorded["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert "commit" in recorded


def test_a_run_of_another_task_or_a_broken_configuration_is_refused(tmp_path):
    class Speech(Config):
        task: str = "speech"

    run = RunDirectory.create(tmp_path / "a", "t", "n")
    run.write_config(CONFIG)
    with pytest.raises(SeqattnError, match="is a run of classification, not of speech"):
        run.read_config(Speech)
    run.config.write_text("task: classification\nname: x\ndata: {dataset: A, batchsize: 3}")
    with pytest.raises(SeqattnError, match=r"data\.batchsize.*did you mean data\.batch_size"):
        run.read_config(ClassificationConfig)


def test_results_round_trip_and_an_unfinished_run_says_so(tmp_path):
    run = RunDirectory.create(tmp_path / "a", "t", "n")
    with pytest.raises(SeqattnError, match="finish the run with --resume"):
        run.read_results()
    run.write_results({"accuracy": 0.5})
    assert run.read_results() == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_results({"accuracy": float("nan")})
    assert run.read_results() == {"accuracy": 0.5}


@pytest.mark.parametrize("damage", [b"{", b"", b"[1]", b"\xff"])
def test_damaged_results_are_to_be_deleted_and_written_again(tmp_path, damage):
    run = RunDirectory.create(tmp_path / "a", "t", "n")
    run.write_config(CONFIG)
    run.results.write_bytes(damage)
    again = f"delete it, and 'seqattn train classification --resume {run.path}' writes it again"
    with pytest.raises(SeqattnError, match=re.escape(again)):
        run.read_results()
    run.results.unlink()
    run.results.mkdir()
    with pytest.raises(SeqattnError, match="cannot read"):
        run.read_results()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    atomic_write_text(path, "old")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupted)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_written_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic_write_text(tmp_path / "a.txt", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.txt")}
    assert len(modes) == 1


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space left on the disk"), (errno.EACCES, "--out")])
def test_a_disk_error_is_one_sentence(tmp_path, code, words):
    def fail(file):
        try:
            raise OSError(code, os.strerror(code))
        except OSError as error:
            raise RuntimeError("wrapped") from error

    with pytest.raises(SeqattnError, match=words):
        atomic_write(tmp_path / "a", fail)
    assert os.listdir(tmp_path) == []


def test_torch_save_beyond_a_size_limit_is_one_sentence(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SeqattnError, match="file size limit"):
            atomic_write(tmp_path / "a", lambda file: torch.save(torch.zeros(100_000), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_the_commit_is_none_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.seqattn, "__file__", str(tmp_path / "seqattn" / "__init__.py"))
    assert environment.git_commit() is None
    (tmp_path / ".git").mkdir()
    assert environment.git_commit() is None
