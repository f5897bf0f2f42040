"""Where health records lie: other folders of a data set's layout, folders that moved, relative paths."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from seqattn.data.clinical import physionet2019
from seqattn.data.clinical.synthetic_mimic import write_synthetic_mimic
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.ehr_new_stays import Source, moved_data, source_of

FIXED = "00:00,RecordID,{0}\n00:00,Age,60\n00:00,Gender,1\n00:00,Height,-1\n00:00,ICUType,3\n00:00,Weight,80\n"


def write_2012(root: Path, first: int = 1000) -> Path:
    """Three sets of 20 records; every fourth dies."""
    for place, name in enumerate("abc"):
        (root / f"set-{name}").mkdir(parents=True)
        outcomes = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
        for number in range(first + 20 * place, first + 20 * place + 20):
            rows = "".join(f"{hour:02d}:07,HR,{60 + number % 4 * 10 + number % 7}\n" for hour in range(1 + number % 5))
            (root / f"set-{name}" / f"{number}.txt").write_text(f"Time,Parameter,Value\n{FIXED.format(number)}{rows}")
            outcomes.append(f"{number},1,1,{number % 7},-1,{int(number % 4 == 0)}")
        (root / f"Outcomes-{name}.txt").write_text("\n".join(outcomes) + "\n")
    return root


def write_2019(root: Path, first: int = 0) -> Path:
    """60 patients of 14 or more rows; every third has sepsis after hour 12."""
    variables = physionet2019.VARIABLES + physionet2019.STATIC_VARIABLES
    header = "|".join([variable.name for variable in variables] + ["ICULOS", "SepsisLabel"])
    (root / "training_setA").mkdir(parents=True)
    for patient in range(first, first + 60):
        lines = [header]
        for row in range(14 + patient % 5):
            cells = [str(70 + 20 * (patient % 3 == 0) + row), *["NaN"] * 33, "61.5", "1", "NaN", "NaN", "-3.5"]
            lines.append("|".join([*cells, str(row + 1), str(int(patient % 3 == 0 and row >= 13))]))
        (root / "training_setA" / f"p{patient:06d}.psv").write_text("\n".join(lines) + "\n")
    return root


def predictions(command, run: Path, folder: object, output: Path, *options: object) -> list[dict[str, str]]:
    done = command("predict", "ehr", run, folder, "-o", output, *options)
    assert done.code == 0, done
    with output.open(newline="") as table:
        return list(csv.DictReader(table))


@pytest.mark.parametrize(("name", "write"), [("physionet2012", write_2012), ("physionet2019", write_2019)])
def test_a_named_set_s_run_takes_folders_of_its_layout(name, write, train_ehr, command, tmp_path) -> None:
    run, data = tmp_path / "run", write(tmp_path / "data")
    assert train_ehr(name, run, "--data-dir", data).code == 0
    own = predictions(command, run, name, tmp_path / "own.csv")
    assert predictions(command, run, data, tmp_path / "same.csv") == own
    later = predictions(command, run, write(tmp_path / "later", first=2000), tmp_path / "later.csv")
    assert len(later) == 60
    assert "2000" in later[0]["id"]
    assert len({row[key] for row in later for key in row if key != "id"}) > 2  # the network looks at its input
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert f"{nothing} holds no {name}" in command("predict", "ehr", run, nothing).error
    shutil.move(data, tmp_path / "moved")
    assert "does not exist" in command("eval", "ehr", run).error
    done = command("eval", "ehr", run, "--data-dir", tmp_path / "moved")
    assert json.loads(done.out)["auroc"] == json.loads((run / "results.json").read_text())["test"]["auroc"]


def test_a_named_set_s_run_takes_tables_too(new_tables, train_ehr, command, tmp_path) -> None:
    run = tmp_path / "run"
    assert train_ehr("physionet2012", run, "--data-dir", write_2012(tmp_path / "data")).code == 0
    events = [
        {"id": "x", "time": 3, "variable": "HR", "value": 90},
        {"id": "y", "time": 4, "variable": "HR", "value": 40},
    ]
    rows = predictions(command, run, new_tables.write("new", {"events": events}), tmp_path / "p.csv")
    assert [row["id"] for row in rows] == ["x", "y"]


def test_a_run_of_generated_patients_takes_mimic_folders(fused_run, command, tmp_path) -> None:
    write_synthetic_mimic(tmp_path / "same", stays=80, seed=0)
    own = predictions(command, fused_run, "synthetic", tmp_path / "own.csv")
    assert predictions(command, fused_run, tmp_path / "same", tmp_path / "p.csv") == own
    shutil.rmtree(tmp_path / "same" / "notes")
    done = command("predict", "ehr", fused_run, tmp_path / "same", "-o", tmp_path / "q.csv")
    assert done.code == 0, done
    assert f"{len(own)} stays taken as patients without notes ({tmp_path / 'same'} has no notes)" in done.err


def test_eval_finds_tables_that_moved(new_tables, train_ehr, command, tmp_path) -> None:
    run = tmp_path / "run"
    rows = new_tables.rows(60)
    data = new_tables.write("data", {name: rows[name] for name in ("events", "labels")})
    identities = [row["id"] for row in rows["labels"]]
    np.save(data / "v.npy", np.random.default_rng(0).normal(size=(60, 4)))
    (data / "v.csv").write_text("id,time\n" + "".join(f"{identity},2\n" for identity in identities))
    options = ["--config", "interleaved", "--set", f"data.notes={data / 'v.npy'}"]
    assert train_ehr(data, run, *options).code == 0
    expected = json.loads(command("eval", "ehr", run).out)
    moved = tmp_path / "elsewhere"
    shutil.move(data, moved)
    assert "is not there: say where it is with --data-dir" in command("eval", "ehr", run).error
    found = json.loads(command("eval", "ehr", run, "--data-dir", moved).out)
    assert found == expected | {"dataset": str(moved)}
    rows = new_tables.rows(30, seed=4)
    other = new_tables.write("other", {name: rows[name] for name in ("events", "labels")})
    shutil.copy(moved / "v.npy", other)
    (other / "v.csv").write_text((moved / "v.csv").read_text())
    assert "are not those that" in command("eval", "ehr", run, "--data-dir", other).error


def test_relative_paths_lead_from_anywhere(new_tables, train_ehr, command, in_tmp, monkeypatch) -> None:
    rows = new_tables.rows(60)
    data = new_tables.write("data", {name: rows[name] for name in ("events", "labels")})
    shutil.move(data, "d")
    np.save("v.npy", np.random.default_rng(0).normal(size=(60, 4)))
    Path("v.csv").write_text("id,time\n" + "".join(f"{row['id']},2\n" for row in rows["labels"]))
    Path("mine.yaml").write_text("data: {dataset: d, notes: v.npy}\nmodel: {fusion: interleaved, num_heads: 2}\n")
    sets = ["model.embed_dim=8", "model.embed_time=8", "model.time_heads=2", "model.num_layers=1"]
    words = [word for key in (*sets, "trainer.max_epochs=1") for word in ("--set", key)]
    done = command("train", "ehr", "--config", "mine.yaml", "--out", "run", *words)
    assert done.code == 0, done
    config = yaml.safe_load(Path("run/config.yaml").read_text())["data"]
    assert (config["dataset"], config["notes"]) == (str(in_tmp / "d"), str(in_tmp / "v.npy"))
    Path("deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert command("eval", "ehr", "../run").code == 0
    assert (
        len(predictions(command, Path("../run"), "../d", Path("p.csv"))) == 59
    )  # the stay without events is in no table


def test_paths_of_a_configuration_that_are_there_become_absolute(in_tmp, monkeypatch) -> None:
    for name in ("d", "notes", "synthetic", "tfidf"):
        Path(name).mkdir()
    Path("map.yaml").write_text("")
    options = {"code_map": "map.yaml", "notes_dir": "../here/notes", "start_times": "absent.csv", "window": 24}
    data = EhrConfig(name="x", data={"dataset": "d", "data_dir": "d", "notes": "absent.npy", "options": options}).data
    assert (data.dataset, data.data_dir, data.notes) == (str(in_tmp / "d"), str(in_tmp / "d"), "absent.npy")
    assert data.options == {
        "code_map": str(in_tmp / "map.yaml"), "notes_dir": str(in_tmp / "notes"), "start_times": "absent.csv",
        "window": 24,
    }  # fmt: skip
    named = EhrConfig(name="x", data={"dataset": "synthetic", "notes": "tfidf"}).data
    assert (named.dataset, named.notes) == ("synthetic", "tfidf")
    monkeypatch.setenv("HOME", str(in_tmp))
    assert EhrConfig(name="x", data={"dataset": "~/d"}).data.dataset == str(in_tmp / "d")
    long = "x" * 5000
    assert EhrConfig(name="x", data={"dataset": long}).data.dataset == long


def test_files_inside_a_folder_that_moved_move_with_it(tmp_path) -> None:
    options = {"notes_dir": "/old/notes", "start_times": "/elsewhere/starts.csv", "clock": "intime"}
    named = EhrConfig(name="x", data={"dataset": "mimic3-ihm", "data_dir": "/old", "options": options}).data
    moved = moved_data(named, str(tmp_path))
    assert (moved.dataset, moved.data_dir) == ("mimic3-ihm", str(tmp_path))
    assert moved.options == options | {"notes_dir": str(tmp_path / "notes")}
    tables = EhrConfig(name="x", data={"dataset": "/old", "notes": "/old/v.npy"}).data
    moved = moved_data(tables, os.path.relpath(tmp_path))
    assert (moved.dataset, moved.data_dir, moved.notes) == (str(tmp_path), None, str(tmp_path / "v.npy"))


def test_options_that_hold_in_another_folder_of_the_layout(tmp_path) -> None:
    options = {"task": "pheno", "stays": 80}
    generated = EhrConfig(name="x", data={"dataset": "synthetic", "options": options}).data
    assert source_of(generated, str(tmp_path)) == Source("mimic3-pheno", str(tmp_path), {})
    assert source_of(generated, "synthetic") == Source("synthetic", None, options)
    elsewhere = tmp_path / "kept.csv"
    elsewhere.write_text("")
    (tmp_path / "new").mkdir()
    options = {"notes_dir": str(tmp_path / "old" / "notes"), "start_times": str(elsewhere), "earliest_note": -6}
    real = EhrConfig(name="x", data={"dataset": "mimic3-ihm", "data_dir": str(tmp_path / "old"), "options": options})
    found = source_of(real.data, str(tmp_path / "new"))  # which has no folder of notes: the option would be an error
    assert found == Source("mimic3-ihm", str(tmp_path / "new"), {"start_times": str(elsewhere), "earliest_note": -6})


def test_options_that_hold_in_another_folder_of_tables(tmp_path) -> None:
    (tmp_path / "events.csv").write_text("id,time,variable,value\n")
    options = {"duplicates": "mean", "earliest_note": -6, "code_map": "map.yaml", "window": 24}
    tables = EhrConfig(name="x", data={"dataset": "elsewhere", "options": options}).data
    kept = {"duplicates": "mean", "earliest_note": -6}
    assert source_of(tables, str(tmp_path)) == Source(str(tmp_path), None, kept)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.parquet").write_bytes(b"")
    kept = {"duplicates": "mean", "code_map": "map.yaml"}
    assert source_of(tables, str(tmp_path)) == Source(str(tmp_path), None, kept)
