"""`seqattn predict ehr`: the CSV, what is left out and counted, notes, and what --explain draws."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seqattn.experiment import ehr_explain
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.ehr_data import new_stays
from seqattn.experiment.ehr_evaluation import load_module
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.stay_picture import StayPicture, draw_stay


def predict(command, run: Path, folder: object, output: Path, *options: object) -> tuple[list[dict[str, str]], str]:
    done = command("predict", "ehr", run, folder, "-o", output, *options)
    assert done.code == 0, done
    assert f"wrote {output} (" in done.out
    with output.open(newline="") as table:
        return list(csv.DictReader(table)), done.err


def risks(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[name]) for name in row if name.startswith("risk_")] for row in rows])


@pytest.fixture
def unlabelled(new_tables) -> Path:
    """Twelve stays with neither labels nor notes."""
    rows = new_tables.rows(12, seed=9, first=100)
    return new_tables.write("new", {name: rows[name] for name in ("events", "static")})


def test_one_row_a_stay_in_the_order_of_the_ids(command, series_run, unlabelled, tmp_path) -> None:
    rows, err = predict(command, series_run, unlabelled, tmp_path / "p.csv")
    assert list(rows[0]) == ["id", "risk_death", "risk_sepsis"]
    assert [row["id"] for row in rows] == [f"s{number}" for number in range(100, 112)]
    assert risks(rows).min() > 0
    assert risks(rows).max() < 1
    assert np.ptp(risks(rows), axis=0).min() > 0.001  # the network looks at its input
    assert err == ""


def test_the_test_stays_get_the_risks_of_the_run(command, series_run, stay_tables, tmp_path) -> None:
    rows, err = predict(command, series_run, stay_tables, tmp_path / "p.csv")
    found = {row["id"]: row for row in rows}
    with (series_run / "predictions.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            for name in ("risk_death", "risk_sepsis"):
                assert float(found[row["id"]][name]) == pytest.approx(float(row[name]), abs=2e-6)
    assert "1 stays without events kept" in err


def test_an_unknown_variable_is_named_or_ignored_and_counted(command, series_run, unlabelled, tmp_path) -> None:
    known = risks(predict(command, series_run, unlabelled, tmp_path / "p.csv")[0])
    with (unlabelled / "events.csv").open("a") as file:
        file.write("s111,47.99,Temperatur,38\ns111,48,Temperatur,39\n")
    output = tmp_path / "q.csv"
    error = command("predict", "ehr", series_run, unlabelled, "-o", output).error
    assert "variable 'Temperatur' is not in the schema" in error
    assert "Temp" in error
    assert not output.exists()
    rows, err = predict(command, series_run, unlabelled, output, "--ignore-unknown")
    np.testing.assert_array_equal(risks(rows), known)
    assert err == "2 events of variables that the schema lacks left out\n"


def test_values_are_clipped_and_cut_as_in_training_and_counted(new_tables, train_ehr, command, tmp_path) -> None:
    rows, run = new_tables.rows(60, window=24), tmp_path / "run"
    variables = [{"name": name, "low": 0, "high": high} for name, high in (("HR", 300), ("Temp", 45))]
    schema = {"version": 1, "window": 24, "steps": 12, "labels": [], "variables": variables}
    data = new_tables.write("data", rows)
    (data / "schema.json").write_text(str(schema).replace("'", '"'))
    assert train_ehr(data, run, "--set", "data.max_rows=8", "--set", "data.static=false").code == 0
    later = new_tables.rows(5, seed=3, first=70, window=24)["events"]
    new = new_tables.write("new", {"events": [*later, {**later[-1], "time": 23.9, "variable": "HR", "value": 1e6}]})
    _, err = predict(command, run, new, tmp_path / "p.csv")  # without a schema.json: the run's window
    assert "1 values clipped to their variable's range (most in HR)" in err
    assert "stays cut to their latest 8 times" in err


def test_the_note_encoder_is_kept_in_the_run(new_tables, train_ehr, command, tmp_path) -> None:
    rows, run = new_tables.rows(60), tmp_path / "run"
    data = new_tables.write("data", rows)
    notes = ["--config", "interleaved", "--set", "data.note_dim=4", "--set", "data.notes=tfidf"]
    assert train_ehr(data, run, *notes).code == 0
    new = new_tables.write("new", {name: rows[name] for name in ("events", "static", "notes")})
    before, _ = predict(command, run, new, tmp_path / "p.csv")
    shutil.rmtree(data)
    after, _ = predict(command, run, new, tmp_path / "q.csv")
    assert before == after
    with (run / "predictions.csv").open(newline="") as table:
        found = {row["id"]: row for row in after}
        for row in csv.DictReader(table):
            assert float(found[row["id"]]["risk_death"]) == pytest.approx(float(row["risk_death"]), abs=2e-6)
    texts = (new / "notes.csv").read_text()
    (new / "notes.csv").write_text(texts.replace("worse", "better"))
    assert predict(command, run, new, tmp_path / "r.csv")[0] != after  # the notes count
    (new / "notes.csv").unlink()
    assert "has no notes" in command("predict", "ehr", run, new).error
    (new / "notes.csv").write_text(texts)
    (run / "note_encoder.npz").unlink()
    assert "note_encoder.npz cannot be read" in command("predict", "ehr", run, new).error


def write_vectors(folder: Path, events: list[dict[str, object]]) -> Path:
    identities = sorted({str(row["id"]) for row in events})
    vectors = np.random.default_rng(0).normal(size=(len(identities), 6)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    (folder / "vectors.csv").write_text("id,time\n" + "".join(f"{identity},2.5\n" for identity in identities))
    return folder / "vectors.npy"


def test_vectors_of_new_notes_have_to_be_given(new_tables, train_ehr, command, tmp_path) -> None:
    rows, run = new_tables.rows(60), tmp_path / "run"
    data = new_tables.write("data", {name: rows[name] for name in ("events", "labels")})
    vectors = write_vectors(data, rows["events"])
    done = train_ehr(data, run, "--config", "interleaved", "--set", f"data.notes={vectors}")
    assert done.code == 0, done
    later = new_tables.rows(6, seed=2, first=200)["events"]
    new = new_tables.write("new", {"events": later})
    assert "give those of" in command("predict", "ehr", run, new, "-o", tmp_path / "p.csv").error
    found, _ = predict(command, run, new, tmp_path / "p.csv", "--notes", write_vectors(new, later))
    assert len(found) == 6
    predict(command, run, data, tmp_path / "q.csv")  # its own: the run knows the file


def test_vectors_are_for_a_run_of_vectors(command, series_run, unlabelled, in_tmp) -> None:
    error = command("predict", "ehr", series_run, unlabelled, "--notes", "v.npy").error
    assert "was not trained on a file of note vectors: leave --notes out" in error
    assert list(in_tmp.iterdir()) == []


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
    for name, picture in (("empty", empty), ("many", many)):
        draw_stay(picture, tmp_path / "pictures" / f"{name}.png")
        with Image.open(tmp_path / "pictures" / f"{name}.png") as image:
            assert min(image.size) > 600


def test_pictures_need_a_place(command, fused_run, tmp_path) -> None:
    (tmp_path / "p-explained").write_text("a file")
    done = command("predict", "ehr", fused_run, "synthetic", "-o", tmp_path / "p.csv", "--explain")
    assert "p-explained is a file" in done.error
    assert not (tmp_path / "p.csv").exists()
