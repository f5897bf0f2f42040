"""`seqattn predict ehr --explain`: which stays are drawn, and what."""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seqattn.experiment import ehr_explain
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.ehr_evaluation import load_module
from seqattn.experiment.ehr_new_stays import new_stays
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.stay_picture import StayPicture, draw_stay


def test_explain_draws_the_first_stays(command, fused_run, tmp_path, monkeypatch) -> None:
    drawn: list[StayPicture] = []
    original = ehr_explain.draw_stay

    def record(picture: StayPicture, path: Path) -> None:
        drawn.append(picture)
        original(picture, path)

    monkeypatch.setattr(ehr_explain, "draw_stay", record)
    monkeypatch.setattr(ehr_explain, "MOST", 2)
    output = tmp_path / "p.csv"
    done = command("predict", "ehr", fused_run, "synthetic", "-o", output, "--explain")
    assert done.code == 0, done
    with output.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert f"wrote 2 pictures to {tmp_path / 'p-explained'}, of the first of {len(rows)} stays\n" in done.out
    pictures = sorted((tmp_path / "p-explained").iterdir())
    assert [path.name for path in pictures] == [f"{n:04d}-{rows[n - 1]['id']}.png" for n in (1, 2)]
    for path in pictures:
        with Image.open(path) as image:
            assert np.unique(np.asarray(image.convert("L"))).size > 50
    run = RunDirectory(fused_run)
    stays = new_stays(run, run.read_config(EhrConfig), "synthetic")
    steps = load_module(run).network.num_steps
    for number, picture in enumerate(drawn):
        stay = stays.stays.stay(number)
        np.testing.assert_allclose(picture.values, stay.values[stay.mask], rtol=1e-6)
        np.testing.assert_allclose(
            picture.hours, np.broadcast_to(stay.times[:, None], stay.mask.shape)[stay.mask], 1e-5
        )
        np.testing.assert_allclose(picture.notes, stay.note_times, rtol=1e-5, atol=1e-5)
        assert picture.attention.shape == (steps, len(stay.times))
        np.testing.assert_allclose(picture.attention.sum(1), 1, rtol=1e-5)
        assert picture.gate.shape[0] == steps
        assert picture.note_attention.shape == (steps, len(stay.note_times))
        np.testing.assert_allclose(picture.note_attention.sum(1), 1, rtol=1e-5)
        assert np.ptp(picture.note_attention, axis=0).max() > 1e-4  # steps look at notes in their own way
        assert 0 < picture.gate.min() < picture.gate.max() < 1
        found = re.fullmatch(r"stay (\S+): mortality (\d+\.\d) %", picture.title)
        assert found, picture.title
        assert found[1] == rows[number]["id"]
        assert float(found[2]) == pytest.approx(100 * float(rows[number]["risk_mortality"]), abs=0.06)


def test_pictures_of_odd_stays(tmp_path) -> None:
    nothing = np.empty(0)
    empty = StayPicture(
        title="stay $a_$: death 1 %", window=24.0, variables=["HR"], hours=nothing, channels=nothing.astype(int),
        values=nothing, row_hours=np.zeros(1), attention=np.zeros((24, 1)), gate=None, notes=nothing,
    )  # fmt: skip
    many = StayPicture(
        title="many", window=48.0, variables=["$b_$" * 30] * 70, hours=np.linspace(0, 48, 140),
        channels=np.arange(140) % 70, values=np.linspace(-9, 9, 140), row_hours=np.array([0.0, 48.0]),
        attention=np.full((2, 2), 0.5), gate=np.full((2, 1), 0.3), notes=np.array([-20.0, 3.0]),
    )  # fmt: skip
    hours = np.linspace(0, 48, 60)
    notes = dataclasses.replace(many, notes=hours, note_attention=np.full((2, 60), 1 / 60))
    for name, picture in (("empty", empty), ("many", many), ("notes", notes)):
        draw_stay(picture, tmp_path / "pictures" / f"{name}.png")
        with Image.open(tmp_path / "pictures" / f"{name}.png") as image:
            assert min(image.size) > 600


def test_pictures_need_a_place(command, fused_run, tmp_path) -> None:
    (tmp_path / "p-explained").write_text("a file")
    done = command("predict", "ehr", fused_run, "synthetic", "-o", tmp_path / "p.csv", "--explain")
    assert "p-explained is a file" in done.error
    assert not (tmp_path / "p.csv").exists()


def draw(command, run: Path, output: Path, *options: object) -> tuple[list[str], str]:
    """The pictures that lie in the folder afterwards, and the last line."""
    done = command("predict", "ehr", run, "synthetic", "-o", output, *options)
    assert done.code == 0, done
    folder = output.parent / f"{output.stem}-explained"
    return sorted(path.name for path in folder.iterdir()), done.out.splitlines()[-1]


def test_stays_are_chosen_by_id_or_number_and_earlier_pictures_go(command, fused_run, tmp_path) -> None:
    output = tmp_path / "p.csv"
    pictures, line = draw(command, fused_run, output, "--explain-limit", 3)
    with output.open(newline="") as table:
        ids = [row["id"] for row in csv.DictReader(table)]
    assert pictures == [f"{number:04d}-{ids[number - 1]}.png" for number in (1, 2, 3)]
    assert line.startswith("wrote 3 pictures to ")
    mine = tmp_path / "p-explained" / "mine.png"
    mine.write_bytes(b"")
    pictures, line = draw(command, fused_run, output, "--explain-ids", f"{ids[5]},{ids[1]},{ids[5]}")
    assert pictures == [f"0002-{ids[1]}.png", f"0006-{ids[5]}.png", mine.name]
    assert line == f"wrote 2 pictures to {tmp_path / 'p-explained'}"


def test_an_id_that_is_not_there_is_named(command, fused_run, tmp_path) -> None:
    done = command("predict", "ehr", fused_run, "synthetic", "-o", tmp_path / "p.csv", "--explain-ids", "nobody")
    assert "--explain-ids: there is no stay 'nobody'" in done.error
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_notes_has_no_weights_of_notes(command, series_run, stay_tables, tmp_path, monkeypatch) -> None:
    drawn: list[StayPicture] = []
    monkeypatch.setattr(ehr_explain, "draw_stay", lambda picture, path: drawn.append(picture))
    done = command("predict", "ehr", series_run, stay_tables, "-o", tmp_path / "p.csv", "--explain-ids", "s003")
    assert done.code == 0, done
    assert drawn[0].note_attention is None
    assert not len(drawn[0].notes)
