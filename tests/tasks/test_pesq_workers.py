"""PESQ in worker processes: the same scores as here, for every clip its own, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from seqattn.data.synthetic_speech import synthetic_corpus
from seqattn.errors import SeqattnError
from seqattn.metrics.perceptual import pesq_score
from seqattn.tasks.pesq_workers import PesqWorkers, collect

pytest.importorskip("pesq")


@pytest.fixture(scope="module")
def pairs():
    """Clean and noisy (4, 12000): the second noisy clip is silent, the third has NaN."""
    clean, noise = (torch.stack(part) for part in synthetic_corpus(3, 4, 0.75))
    noisy = clean + 0.3 * noise
    noisy[1] = 0
    noisy[2, 100] = torch.nan
    return clean, noisy


@pytest.fixture(scope="module")
def workers():
    workers = PesqWorkers(1)
    yield workers
    workers.close()


def test_a_clip_that_cannot_be_scored_costs_no_other_its_score(pairs, workers):
    clean, noisy = pairs
    here, apart = (collect(scorer.submit(clean, noisy)) for scorer in (PesqWorkers(0), workers))
    assert here.isnan().tolist() == [False, True, True, False]
    assert here[0] != here[3]
    for index in (0, 3):
        assert here[index].item() == pytest.approx(pesq_score(clean[index].numpy(), noisy[index].numpy()))
    torch.testing.assert_close(apart, here, equal_nan=True, rtol=0, atol=0)


def test_samples_past_the_end_count_for_nothing(pairs):
    clean, noisy = pairs
    lengths = torch.tensor([12000, 12000, 50, 8000])
    found = collect(PesqWorkers(0).submit(clean, noisy, lengths))
    assert found[0] == collect(PesqWorkers(0).submit(clean[:1], noisy[:1]))[0]
    assert found[1].isnan()
    assert found[2].isnan()  # 50 samples are too few, and the NaN lies past them
    assert found[3] == collect(PesqWorkers(0).submit(clean[3:, :8000], noisy[3:, :8000]))[0]


def test_what_training_gives_is_scored(pairs):
    clean, noisy = pairs
    found = collect(PesqWorkers(0).submit(clean[:1], noisy[:1].bfloat16().requires_grad_()))
    assert found[0] == pytest.approx(pesq_score(clean[0].numpy(), noisy[0].bfloat16().float().numpy()))


def test_processes_start_with_the_first_clip_and_again_after_close(pairs):
    clean, noisy = pairs
    workers = PesqWorkers(1)
    assert workers._pool is None
    expected = collect(workers.submit(clean[:1], noisy[:1]))
    workers.close()
    workers.close()
    assert workers._pool is None
    assert collect(workers.submit(clean[:1], noisy[:1])) == expected
    workers.close()


def test_ctrl_c_is_left_to_the_parent(pairs, workers):
    clean, noisy = pairs
    expected = collect(workers.submit(clean[:1], noisy[:1]))
    (process,) = workers._pool._processes
    os.kill(process, signal.SIGINT)
    assert collect(workers.submit(clean[:1], noisy[:1])) == expected
    assert list(workers._pool._processes) == [process]


def test_a_process_ended_from_outside_is_one_sentence(pairs):
    clean, noisy = pairs
    workers = PesqWorkers(1)
    collect(workers.submit(clean[:1], noisy[:1]))
    (process,) = workers._pool._processes
    os.kill(process, signal.SIGKILL)
    many = torch.zeros(300, 5000)  # more than the process can have taken before it is missed
    with pytest.raises(SeqattnError, match=r"was ended from outside: resume the run, with pesq_workers=0"):
        collect(workers.submit(many, many))
    with pytest.raises(SeqattnError, match="was ended from outside"):
        workers.submit(clean[:1], noisy[:1])
    workers.close()


def runs(process: int) -> bool:
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


PROGRAM = """
import os, signal, sys
if __name__ == "__main__":
    import torch
    from seqattn.tasks.pesq_workers import PesqWorkers, collect
    workers = PesqWorkers(1)
    collect(workers.submit(torch.ones(1, 10), torch.ones(1, 10)))
    print(*workers._pool._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_training_leaves_no_process(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 60
    while runs(int(done.stdout)):
        assert time.monotonic() < deadline, "the process that computes PESQ is still there"
        time.sleep(0.05)
