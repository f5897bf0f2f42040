"""`seqattn eval speech`: a run and the shipped weights on test lists, and where the results go."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("pesq")

from seqattn.data.synthetic_speech import synthetic_corpus  # noqa: E402
from seqattn.metrics.speech import METRICS  # noqa: E402

TINY = ("model.channels=8", "model.blocks=1", "model.heads=2", "model.n_fft=64", "model.hop=32", "model.d_state=2")
SHORT = ("data.epoch_size=4", "data.validation_clips=1", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    sets = [word for option in (*TINY, *SHORT) for word in ("--set", option)]
    done = command("train", "speech", "--synthetic", "--config", "mambattention-demo", "--out", run, *sets)
    assert done.code == 0, done
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A folder of two pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    clean, noises = synthetic_corpus(2, 2, 1.0)
    for part, level in (("clean", 0.0), ("noisy", 0.05)):
        (folder / part).mkdir()
        for number, wave in enumerate(clean):
            noise = level * noises[0][: len(wave)] / noises[0].abs().max()
            soundfile.write(folder / part / f"a_{number}.wav", (wave + noise).numpy(), 16_000)
    return folder


def columns(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_on_its_own_list_and_on_another(command, run: Path, pairs: Path) -> None:
    own = command("eval", "speech", run)
    assert own.code == 0, own
    assert "the run's own test list; holdout protocol: best epoch" in own.out
    rows = columns(run / "evaluation.csv")
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["files"] == len(rows)
    for signal in ("noisy", "enhanced"):
        for metric in METRICS:
            values = torch.tensor([float(row[f"{signal}_{metric}"]) for row in rows])
            mean = values[values.isfinite()].mean().item()
            assert results["test"][signal][metric]["mean"] == pytest.approx(mean, rel=1e-4)
    other = command("eval", "speech", run, "--data-dir", pairs, "--scale", "float")
    assert other.code == 0, other
    again = json.loads((run / "results.json").read_text())
    assert again["test"] == results["test"]
    assert again["tests"][pairs.name]["scale"] == "float"
    assert len(columns(run / f"evaluation-{pairs.name}.csv")) == 2
    assert columns(run / "evaluation.csv") == rows


def test_the_shipped_weights(command, pairs: Path, tmp_path: Path) -> None:
    done = command("eval", "speech", "--data-dir", pairs, "--out", tmp_path / "shipped.csv")
    assert done.code == 0, done
    assert "mambattention-small, the shipped weights, on " in done.out
    assert [row["file"] for row in columns(tmp_path / "shipped.csv")] == ["a_0", "a_1"]
    assert "--data-dir" in command("eval", "speech").error


def test_an_unfinished_run_is_measured_and_says_so(command, run: Path, pairs: Path) -> None:
    (run / "results.json").unlink()
    done = command("eval", "speech", run, "--data-dir", pairs)
    assert done.code == 0, done
    assert ", unfinished, on " in done.out
    assert not (run / "results.json").exists()


def test_bad_input(command, run: Path, pairs: Path, tmp_path: Path) -> None:
    assert "there is no run directory" in command("eval", "speech", tmp_path / "nowhere").error
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in command("eval", "speech", run, "--data-dir", tmp_path / "empty").error
