import csv
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from resuming import assert_same

WORKER = Path(__file__).with_name("resume_worker.py")


def run_worker(*arguments):
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def train():
    """Train in a process of its own and return the exit code and the output."""
    with run_worker() as server:

        def train(run, *options):
            server.stdin.write(shlex.join([str(run), *map(str, options)]) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
            return code, Path(f"{run}.log").read_text()

        yield train
        server.stdin.close()


def checkpoint(run, name):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def without_paths(state):
    """What may differ between two runs: their folder, and the seconds an epoch took."""
    if isinstance(state, dict):
        kept = {key: without_paths(value) for key, value in state.items() if key not in ("dirpath", "seconds")}
        return {Path(key).name if isinstance(key, str) and "/checkpoints/" in key else key: kept[key] for key in kept}
    if isinstance(state, list):
        return [without_paths(value) for value in state]
    return Path(state).name if isinstance(state, str) and "/checkpoints/" in state else state


def assert_same_run(first, second):
    for name in ("best", "last"):
        assert_same(without_paths(checkpoint(first, name)), without_paths(checkpoint(second, name)), name)
    tables = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (first, second)]
    assert_same(*[[{key: row[key] for key in row if key != "seconds"} for row in table] for table in tables])


@pytest.fixture(scope="module", params=["plateau", "cosine"])
def whole(request, train, tmp_path_factory):
    run = tmp_path_factory.mktemp(request.param) / "whole"
    assert train(run, request.param, 6)[0] == 0
    return request.param, run


def test_killed_in_epoch_4_and_resumed_equals_uninterrupted(whole, train, tmp_path):
    scheduler, run = whole
    assert train(tmp_path / "a", scheduler, 6, "--die", "3:SIGKILL")[0] == -9
    assert checkpoint(tmp_path / "a", "last")["epoch"] == 2
    shutil.move(tmp_path / "a", tmp_path / "moved")
    code, output = train(tmp_path / "moved", scheduler, 6, "--resume")
    assert code == 0, output
    assert_same_run(run, tmp_path / "moved")
    assert sorted(path.name for path in (tmp_path / "moved" / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_the_learning_rate_has_changed_before_and_after_the_stop(whole):
    _, run = whole
    rates = [float(row["lr"]) for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())]
    assert len(rates) == 6
    assert rates[0] > rates[3] > rates[5]


@pytest.mark.parametrize("epoch", [0, 3])
def test_ctrl_c_leaves_a_run_that_resumes_exactly(whole, train, tmp_path, epoch):
    scheduler, run = whole
    code, output = train(tmp_path / "a", scheduler, 6, "--die", f"{epoch}:SIGINT")
    assert code == 130
    assert f"interrupted; resume with: seqattn train classification --resume {tmp_path}/a" in output
    assert train(tmp_path / "a", scheduler, 6, "--resume")[0] == 0
    assert_same_run(run, tmp_path / "a")


def test_worker_processes_do_not_change_a_resumed_run(whole, train, tmp_path):
    scheduler, run = whole
    assert train(tmp_path / "a", scheduler, 6, "--die", "3:SIGKILL", "--workers", 1)[0] == -9
    assert train(tmp_path / "a", scheduler, 6, "--resume", "--workers", 1)[0] == 0
    assert_same_run(run, tmp_path / "a")


def test_a_stopped_run_stays_stopped(train, tmp_path):
    code, output = train(tmp_path / "a", "cosine", 60, "--patience", 1)
    assert code == 0, output
    before = checkpoint(tmp_path / "a", "last")
    assert before["epoch"] < 59
    assert train(tmp_path / "a", "cosine", 60, "--patience", 1, "--resume")[0] == 0
    assert_same(before, checkpoint(tmp_path / "a", "last"))


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path):
    def train_both(run, *options):
        with run_worker(run, "plateau", 6, "--devices", 2, *options) as process:
            return process.wait()

    assert train_both(tmp_path / "whole") == 0
    assert train_both(tmp_path / "a", "--die", "3:SIGINT") != 0
    assert train_both(tmp_path / "a", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "a")
