"""`seqattn predict ehr`: the CSV, what is left out and counted, and notes."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest


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
    (new / "notes.csv").write_text(texts)
    (run / "note_encoder.npz").unlink()
    assert "note_encoder.npz cannot be read" in command("predict", "ehr", run, new).error


def test_a_folder_without_notes_is_one_of_patients_without_notes(new_tables, train_ehr, command, tmp_path) -> None:
    run = tmp_path / "run"
    notes = ["--config", "interleaved", "--set", "data.note_dim=4"]
    assert train_ehr(new_tables.write("data", new_tables.rows(60)), run, *notes).code == 0
    rows = new_tables.rows(6, seed=2, first=200)
    new = new_tables.write("new", {name: rows[name] for name in ("events", "static")})
    without, err = predict(command, run, new, tmp_path / "p.csv")
    assert err == f"6 stays taken as patients without notes ({new} has no notes)\n"
    (new / "notes.csv").write_text("id,time,text\ns200,90,after the window\n")
    empty, err = predict(command, run, new, tmp_path / "q.csv")
    np.testing.assert_allclose(risks(empty), risks(without), atol=2e-6)
    assert "patients without notes" not in err
    (new / "notes.csv").write_text("id,time,text\ns200,3,Patient is worse today\n")
    changed = risks(predict(command, run, new, tmp_path / "r.csv")[0]) - risks(without)
    assert np.abs(changed[0]).max() > 1e-4
    assert np.abs(changed[1:]).max() < 1e-5


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
    without, err = predict(command, run, new, tmp_path / "p.csv", "--notes", "none")
    assert "6 stays taken as patients without notes (--notes none)\n" in err
    assert np.abs(risks(without) - risks(found)).max() > 1e-4
    predict(command, run, data, tmp_path / "q.csv")  # its own: the run knows the file


def test_vectors_are_for_a_run_of_vectors(command, series_run, unlabelled, in_tmp) -> None:
    error = command("predict", "ehr", series_run, unlabelled, "--notes", "v.npy").error
    assert "was not trained on a file of note vectors: leave --notes out" in error
    assert list(in_tmp.iterdir()) == []
