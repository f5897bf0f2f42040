"""`seqattn predict classification`: the CSV, padding, and what --explain draws."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seqattn.data.ts_file import read_ts
from seqattn.experiment import evaluation
from seqattn.experiment.evaluation import load_module
from seqattn.experiment.run_directory import RunDirectory
from seqattn.models.saliency import period_saliency


def predict(command, run: Path, file: Path, output: Path, *options: str) -> list[dict[str, str]]:
    done = command("predict", "classification", run, file, "-o", output, *options)
    assert done.code == 0, done
    assert done.err == ""
    assert f"wrote {output}" in done.out
    with output.open(newline="") as table:
        return list(csv.DictReader(table))


def scores(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[name]) for name in row if name.startswith("p_")] for row in rows])


@pytest.fixture
def unequal_file(toy, tmp_path: Path) -> Path:
    """Nine series of 9 to 16 steps, some with a missing value."""
    return toy.write_file(tmp_path / "new.ts", toy.lines(9, 20, unequal=True), equal=False)


def test_the_table_holds_one_row_a_case(command, unequal_run, unequal_file, toy, tmp_path) -> None:
    rows = predict(command, unequal_run, unequal_file, tmp_path / "p.csv")
    assert list(rows[0]) == ["case", "predicted", "p_rest", "p_walk", "p_run-fast"]
    assert [row["case"] for row in rows] == [str(case) for case in range(1, 10)]
    found = scores(rows)
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=2e-6)
    assert found.min() >= 0
    assert [row["predicted"] for row in rows] == [toy.classes[best] for best in found.argmax(1)]
    assert np.ptp(found, axis=0).max() > 0.02  # the network looks at its input


def test_padding_never_changes_a_probability(command, unequal_run, unequal_file, toy, tmp_path) -> None:
    together = scores(predict(command, unequal_run, unequal_file, tmp_path / "p.csv"))
    lengths = read_ts(unequal_file).lengths
    assert len(set(lengths.tolist())) > 3
    lines = unequal_file.read_text().splitlines()[4:]
    for case, line in enumerate(lines):
        alone = toy.write_file(tmp_path / f"case-{case}.ts", [line], equal=False)
        found = scores(predict(command, unequal_run, alone, tmp_path / "alone.csv"))
        np.testing.assert_allclose(found[0], together[case], rtol=0, atol=1.5e-6)


def test_labels_in_the_file_change_nothing(command, unequal_run, unequal_file, tmp_path) -> None:
    labelled = scores(predict(command, unequal_run, unequal_file, tmp_path / "p.csv"))
    header, cases = unequal_file.read_text().split("@data\n")
    bare = "\n".join(line.rpartition(":")[0] for line in cases.splitlines())
    unlabelled = tmp_path / "unlabelled.ts"
    unlabelled.write_text(header.replace("true rest walk run-fast", "false") + "@data\n" + bare + "\n")
    np.testing.assert_array_equal(scores(predict(command, unequal_run, unlabelled, tmp_path / "q.csv")), labelled)


def test_the_run_is_not_touched(command, unequal_run, unequal_file, tmp_path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unequal_run.rglob("*")}
    predict(command, unequal_run, unequal_file, tmp_path / "p.csv", "--explain")
    assert before == {path: path.stat().st_mtime_ns for path in unequal_run.rglob("*")}


def test_explain_draws_every_series_with_its_saliency(
    command, unequal_run, unequal_file, tmp_path, monkeypatch
) -> None:
    drawn: list[tuple[np.ndarray, np.ndarray, list[int], list[float], str]] = []
    original = evaluation.explained_series

    def record(series, saliency, periods, weights, title, path) -> None:
        drawn.append((series, saliency, periods, weights, title))
        original(series, saliency, periods, weights, title, path)

    monkeypatch.setattr(evaluation, "explained_series", record)
    rows = predict(command, unequal_run, unequal_file, tmp_path / "p.csv", "--explain")
    pictures = sorted((tmp_path / "p-explained").iterdir())
    assert [path.name for path in pictures] == [f"case-{case:04d}.png" for case in range(1, 10)]
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
    given = read_ts(unequal_file)
    for case, (series, saliency, periods, weights, title) in enumerate(drawn):
        length = given.lengths[case]
        np.testing.assert_array_equal(series, given.values[case, :length])
        assert saliency.shape == (length,)
        assert saliency.min() >= 0
        assert saliency.sum() == pytest.approx(1, abs=1e-5)
        assert len(weights) == len(periods) == 2
        assert min(weights) > 0
        assert title.startswith(f"case {case + 1}: {rows[case]['predicted']} (")
        assert title.endswith(f"labelled {given.labels[case]}")
    assert any(np.ptp(saliency) > 0 for _, saliency, *_ in drawn)


def test_old_pictures_go_when_new_ones_are_drawn(command, unequal_run, unequal_file, tmp_path) -> None:
    folder = tmp_path / "p-explained"
    folder.mkdir()
    for name in ("case-0001.png", "case-0012.png", "case-10000.png", "mine.png"):
        (folder / name).write_bytes(b"old")
    predict(command, unequal_run, unequal_file, tmp_path / "p.csv", "--explain")
    new = [f"case-{case:04d}.png" for case in range(1, 10)]
    assert sorted(path.name for path in folder.iterdir()) == [*new, "mine.png"]
    assert (folder / "mine.png").read_bytes() == b"old"
    assert all((folder / name).read_bytes() != b"old" for name in new)


def test_an_old_picture_that_cannot_go_is_one_sentence(command, unequal_run, unequal_file, tmp_path) -> None:
    (tmp_path / "p-explained" / "case-0004.png").mkdir(parents=True)
    done = command("predict", "classification", unequal_run, unequal_file, "-o", tmp_path / "p.csv", "--explain")
    assert "case-0004.png" in done.error
    assert [path.name for path in (tmp_path / "p-explained").iterdir()] == ["case-0004.png"]


def test_a_log_gets_lines_while_pictures_are_drawn(command, unequal_run, unequal_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "LINE_EVERY", 4)
    done = command("predict", "classification", unequal_run, unequal_file, "-o", tmp_path / "p.csv", "--explain")
    assert done.err == "drew 4 of 9 pictures\ndrew 8 of 9 pictures\n"


def test_saliency_of_a_padded_batch_is_0_past_the_end_and_the_same_as_alone(unequal_run, unequal_file) -> None:
    module = load_module(RunDirectory(unequal_run))
    series = read_ts(unequal_file)
    lengths = torch.from_numpy(series.lengths)
    x = module.normalizer(torch.from_numpy(series.values), lengths)
    saliency, weights = period_saliency(module.network, x, lengths)
    assert saliency.shape == x.shape[:2]
    past_end = torch.arange(x.shape[1]) >= lengths[:, None]
    assert past_end.any()
    assert (saliency[past_end] == 0).all()
    torch.testing.assert_close(saliency.sum(1), torch.ones(len(x)), rtol=0, atol=1e-5)
    for case, length in enumerate(series.lengths.tolist()):
        alone, own = period_saliency(module.network, x[case : case + 1, :length], lengths[case : case + 1])
        torch.testing.assert_close(alone[0], saliency[case, :length], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(own[0], weights[case], rtol=1e-4, atol=1e-6)
