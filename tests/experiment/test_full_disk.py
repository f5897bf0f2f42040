"""A disk that fills up: one sentence, nothing half-written, and a run that resumes."""

import errno
import os
from pathlib import Path

import pytest
from run_files import contents


# a disk that is full from the nth write of files of one name on
class FullDisk:
    def __init__(self, name: str, from_write: int = 1) -> None:
        self.name, self.left, self.fsync = name, from_write - 1, os.fsync

    def __call__(self, file: int) -> None:
        if self.name in os.readlink(f"/proc/self/fd/{file}"):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.fsync(file)


linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


@linux
@pytest.mark.parametrize(
    ("name", "left"), [("p.csv", []), ("case-0003.png", ["p.csv", "case-0001.png", "case-0002.png"])]
)
def test_a_full_disk_while_predicting(command, toy, unequal_run, in_tmp, monkeypatch, name, left) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk(name))
    file = toy.folder / "Unequal_TEST.ts"
    error = command("predict", "classification", unequal_run, file, "-o", "p.csv", "--explain").error
    assert "no space left on the disk" in error
    assert name in error
    assert {Path(path).name for path in contents(in_tmp)} - {"p-explained"} == set(left)


@linux
def test_a_full_disk_leaves_an_older_table(command, toy, unequal_run, in_tmp, monkeypatch) -> None:
    (in_tmp / "p.csv").write_text("an older table\n")
    monkeypatch.setattr(os, "fsync", FullDisk("p.csv"))
    file = toy.folder / "Unequal_TEST.ts"
    assert "p.csv: no space" in command("predict", "classification", unequal_run, file, "-o", "p.csv").error
    assert contents(in_tmp) == {str(in_tmp / "p.csv"): b"an older table\n"}


@linux
@pytest.mark.parametrize(
    ("name", "write"),
    [("last.ckpt", 3), ("metrics.csv", 2), ("model.safetensors", 1), ("results.json", 1), ("learning_curves.png", 1)],
)
def test_a_full_disk_while_training_leaves_a_run_that_resumes_exactly(
    train, command, unequal_run, in_tmp, monkeypatch, name, write
) -> None:
    run = in_tmp / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FullDisk(name, write))
        done = train("Unequal", run, "--set", "data.folds=1", "--set", "trainer.max_epochs=6")
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if not line.startswith("epoch ")]
    assert len(errors) == 1, done.err
    assert errors[0].startswith("error: ")
    assert f"{name}: no space left on the disk" in errors[0]
    assert not (run / "results.json").exists()
    assert not list(run.rglob(".*"))
    assert command("train", "classification", "--resume", run).code == 0
    assert (run / "model.safetensors").read_bytes() == (unequal_run / "model.safetensors").read_bytes()


@linux
def test_a_disk_full_from_the_start_leaves_no_run(train, in_tmp, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk("config.yaml"))
    assert "config.yaml: no space left" in train("Unequal", in_tmp / "run").error
    assert contents(in_tmp) == {}


LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"


@linux
def test_a_limit_on_file_sizes_stops_training_with_a_sentence(start, tiny_arguments, in_tmp) -> None:
    run = in_tmp / "run"
    with start("train", "classification", *tiny_arguments("Small", run), prelude=LIMIT, cwd=in_tmp) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith(f"error: cannot write {run}/checkpoints/fold-1/last.ckpt: the file size limit is reached")
    assert not list(run.rglob("*.ckpt"))
    assert not list(run.rglob(".*"))
