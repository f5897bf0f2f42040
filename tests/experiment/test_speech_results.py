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
from seqattn.experiment import speech_results  # noqa: E402
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


@pytest.fixture
def more_pairs(pairs: Path, tmp_path: Path) -> Path:
    """Three pairs in a folder of the same name as that of `pairs`."""
    folder = Path(shutil.copytree(pairs, tmp_path / "more" / pairs.name))
    for part in ("clean", "noisy"):
        shutil.copy(folder / part / "a_1.wav", folder / part / "a_2.wav")
    return folder


@pytest.fixture
def trained_on_pairs(run: Path, more_pairs: Path) -> Path:
    """The run, as if it had been trained on the folder of pairs, of which the last was held out as its test list."""
    config = run / "config.yaml"
    text = config.read_text().replace("source: synthetic", "source: pairs")
    config.write_text(text.replace("data_dir: null", f"data_dir: {more_pairs}"))
    return run


def test_the_folder_of_training_is_measured_on_its_held_out_part(
    command, trained_on_pairs, more_pairs, monkeypatch
) -> None:
    run = trained_on_pairs
    own = command("eval", "speech", run)
    assert own.code == 0, own
    rows = columns(run / "evaluation.csv")
    assert [row["file"] for row in rows] == ["a_2"]
    monkeypatch.chdir(more_pairs)
    for name in (more_pairs, ".", more_pairs / "clean" / ".."):
        (run / "evaluation.csv").unlink()
        named = command("eval", "speech", run, "--data-dir", name)
        assert named.out == own.out
        assert "on the run's own test list" in named.out
        assert columns(run / "evaluation.csv") == rows
    assert "tests" not in json.loads((run / "results.json").read_text())
    assert not list(run.glob("evaluation-*.csv"))


def test_folders_of_one_name_are_kept_apart(command, run: Path, pairs: Path, more_pairs: Path, monkeypatch) -> None:
    monkeypatch.chdir(more_pairs)
    for folder, name in ((pairs, pairs.name), (".", f"{pairs.name}-2"), (pairs, pairs.name)):
        done = command("eval", "speech", run, "--data-dir", folder)
        assert done.code == 0, done
        assert done.out.splitlines()[-1] == f"every file: {run / f'evaluation-{name}.csv'}"
    tests = json.loads((run / "results.json").read_text())["tests"]
    assert {name: (found["folder"], found["files"]) for name, found in tests.items()} == {
        pairs.name: (str(pairs.resolve()), 2),
        f"{pairs.name}-2": (str(more_pairs.resolve()), 3),
    }
    assert [len(columns(path)) for path in sorted(run.glob("evaluation-*.csv"))] == [3, 2]


FAULTS = {
    "no audio": (lambda path: path.write_bytes(b"no audio"), "cannot be read as audio"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:9000]), "is cut short"),
    "not a number": (
        lambda path: soundfile.write(path, [0.1, float("nan")] * 8000, 16_000, subtype="FLOAT"),
        "has samples that are NaN",
    ),
    "too short": (lambda path: soundfile.write(path, [0.1] * 9, 16_000), ""),
}


@pytest.mark.parametrize(("spoil", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_file_is_left_out_and_named(command, run: Path, more_pairs: Path, spoil, words: str) -> None:
    spoil(more_pairs / "noisy" / "a_0.wav")
    done = command("eval", "speech", run, "--data-dir", more_pairs)
    table = columns(run / f"evaluation-{more_pairs.name}.csv")
    if not words:  # measures that do not exist are no failure
        assert (done.code, len(table)) == (0, 3), done
        assert "files left out because the measure is undefined for either signal: pesq 1" in done.out
        return
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2
    assert len(lines) == 2
    assert f"noisy/a_0.wav {words}" in lines[0]
    assert lines[1] == "error: 1 file was left out of the means, for the reasons above: mend or remove what failed"
    assert [row["file"] for row in table] == ["a_1", "a_2"]
    assert "mean ± 95 % interval of 2 files" in done.out


def test_unequal_pairs_are_one_sentence(command, run: Path, more_pairs: Path) -> None:
    soundfile.write(more_pairs / "noisy" / "a_0.wav", torch.rand(9000).numpy(), 16_000)
    done = command("eval", "speech", run, "--data-dir", more_pairs)
    assert done.code == 0, done
    sentence = "1 pair differs in length and will be cut to the shorter: first a_0, noisy 9000 and clean 16000 samples"
    assert done.err == f"warning: {sentence} at 16 kHz\n"


@pytest.mark.parametrize("place", ["", "/dev/full", "/dev/null/a.csv", "/proc/a.csv"])
def test_a_table_that_cannot_be_written_is_met_before_measuring(command, run, pairs, place, monkeypatch) -> None:
    monkeypatch.setattr(speech_results, "evaluate_clips", None)
    done = command("eval", "speech", run, "--data-dir", pairs, "-o", place or run)
    assert str(place or run) in done.error
    assert "is not a file: name a CSV file with -o" in done.error or "choose a folder you may write to" in done.error


def test_the_shipped_weights(command, pairs: Path, tmp_path: Path) -> None:
    done = command("eval", "speech", "--data-dir", pairs, "--out", tmp_path / "shipped.csv")
    assert done.code == 0, done
    assert "mambattention-small, the shipped weights, on " in done.out
    assert [row["file"] for row in columns(tmp_path / "shipped.csv")] == ["a_0", "a_1"]
    bare = command("eval", "speech", "--data-dir", pairs)
    assert bare.out == done.out.replace(
        f"every file: {tmp_path / 'shipped.csv'}", "no CSV of every file was written: name one with -o FILE"
    )
    assert "--data-dir" in command("eval", "speech").error


def test_an_unfinished_run_is_measured_and_says_so(command, run: Path, pairs: Path) -> None:
    (run / "results.json").unlink()
    done = command("eval", "speech", run, "--data-dir", pairs)
    assert done.code == 0, done
    assert ", unfinished, on " in done.out
    assert not (run / "results.json").exists()
    assert (
        f"every file: {run / f'evaluation-{pairs.name}-2.csv'}"
        in command("eval", "speech", run, *["--data-dir", pairs]).out
    )


def test_bad_input(command, run: Path, pairs: Path, tmp_path: Path) -> None:
    assert "there is no run directory" in command("eval", "speech", tmp_path / "nowhere").error
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in command("eval", "speech", run, "--data-dir", tmp_path / "empty").error
