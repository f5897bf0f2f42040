"""`seqattn train|eval|predict ehr` and `seqattn ehr-codes`: what the options become."""

import json
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seqattn.cli.app import app
from seqattn.data.clinical.sources import SOURCES, read_source
from seqattn.errors import SeqattnError
from seqattn.experiment.ehr_config import NAMED
from seqattn.experiment.ehr_listing import PLACES


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the functions that do the work, and what they were called with."""
    made = []
    training, evaluation = (types.ModuleType(f"seqattn.experiment.{name}") for name in ("ehr", "ehr_evaluation"))
    training.train_run = lambda *arguments: made.append(arguments)
    evaluation.evaluate_run = lambda *arguments: made.append(arguments) or {"auroc": 1.0}
    evaluation.predict_folder = lambda *arguments: made.append(arguments)
    for module in (training, evaluation):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_flags_override_the_configuration_only_when_given(calls, tmp_path):
    flags = ["--dataset", "physionet2012", "--data-dir", tmp_path, "--seed", 4, "--selection", "f1", "--out", "here"]
    invoke("train", "ehr", *flags, "--set", "model.gate=patient", "--devices", 2, "--strategy", "ddp")
    config, out, resume = calls[0]
    assert (config.name, config.model.gate, config.seed, config.selection) == ("series", "patient", 4, "f1")
    assert (config.data.dataset, config.data.data_dir, str(out), resume) == (
        "physionet2012",
        str(tmp_path),
        "here",
        None,
    )
    assert (config.trainer.devices, config.trainer.strategy) == (2, "ddp")
    invoke("train", "ehr", "--model", "gru_d")
    assert (calls[1][0].name, calls[1][0].model.name, calls[1][0].selection) == ("gru-d", "gru_d", "auprc")
    invoke("train", "ehr", "--config", "interleaved-paper")
    assert (calls[2][0].selection, calls[2][0].model.fusion, calls[2][0].trainer.max_epochs) == ("f1", "interleaved", 6)


def test_a_folder_becomes_absolute_and_a_name_stays_one(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "synthetic"):
        Path(name).mkdir()
        invoke("train", "ehr", "--dataset", name)
    assert [call[0].data.dataset for call in calls] == [str(tmp_path / "mine"), "synthetic"]
    assert set(NAMED) == set(SOURCES)


def test_eval_and_predict_pass_their_arguments_on(calls, tmp_path):
    assert json.loads(invoke("eval", "ehr", "r", "--data-dir", "d").stdout) == {"auroc": 1.0}
    invoke("predict", "ehr", "r", "new", "-o", tmp_path / "p.csv", "--explain", "--ignore-unknown", "--notes", "v.npy")
    invoke("predict", "ehr", "r", "new")
    assert calls[0] == (Path("r"), "d")
    assert calls[1] == (Path("r"), "new", tmp_path / "p.csv", "ignore", True, "v.npy", None, None)
    assert calls[2] == (Path("r"), "new", Path("predictions.csv"), "error", False, None, None, None)


def test_what_is_drawn_can_be_chosen(calls, command):
    invoke("predict", "ehr", "r", "new", "--explain-ids", "a, b")
    invoke("predict", "ehr", "r", "new", "--explain-limit", 3)
    assert [call[4:] for call in calls] == [(True, None, ["a", "b"], None), (True, None, None, 3)]
    done = command("predict", "ehr", "r", "new", "--explain-ids", "a", "--explain-limit", 3)
    assert "both say which stays are drawn: give one of them" in done.error


def test_data_sets_are_listed_with_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "none"))
    (tmp_path / "ehr" / "physionet2012" / "set-a").mkdir(parents=True)
    (tmp_path / "mimic3" / "phenotyping").mkdir(parents=True)
    lines = invoke("list", "datasets", "--data-dir", tmp_path).stdout.splitlines()
    found = dict(line.removeprefix("ehr").strip().split("  ", 1) for line in lines if line.startswith("ehr "))
    assert found["physionet2012"] == f"in {tmp_path / 'ehr' / 'physionet2012'}"
    assert found["mimic3-pheno"] == f"in {tmp_path / 'mimic3'}"
    assert found["mimic3-ihm"] == "not here: give the folder of in-hospital-mortality with --data-dir"
    assert found["physionet2019"].startswith("not here")
    assert set(found) == {*NAMED, "DIR"}
    without = invoke("list", "datasets").stdout
    assert "ehr      physionet2012  not here" in without


@pytest.mark.parametrize("name", PLACES)
def test_the_list_looks_for_what_the_reader_looks_for(name, tmp_path):
    folder, marks = PLACES[name]
    with pytest.raises(SeqattnError, match="holds no") as refused:
        read_source(name, str(tmp_path))
    assert f"holds no {folder}: there is no {' or '.join(marks)} in it" in str(refused.value)


def test_codes_are_listed_by_frequency(tmp_path):
    events = "id,time,variable,value\na,1,HR,80\na,2,HR,82\nb,1,rhythm,sinus\nb,2,HR,90\n"
    (tmp_path / "events.csv").write_text(events)
    done = invoke("ehr-codes", tmp_path)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["rows", "numbers", "code"], ["3", "3", "HR"], ["1", "0", "rhythm"],
    ]  # fmt: skip
    done = invoke("ehr-codes", tmp_path, "--top", 1)
    assert "rhythm" not in done.stdout
    assert done.stderr == "1 more codes\n"


def test_codes_of_meds(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pandas.DataFrame({
        "subject_id": [1, 1, 2], "time": pandas.to_datetime(["2020-01-01"] * 3), "code": ["LAB//1", "NOTE", "LAB//1"],
        "numeric_value": [1.5, None, None],
    })  # fmt: skip
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "0.parquet")
    lines = [line.split() for line in invoke("ehr-codes", tmp_path).stdout.splitlines()]
    assert lines[1:] == [["2", "1", "LAB//1"], ["1", "0", "NOTE"]]


def test_codes_of_nothing(tmp_path, command):
    assert "has neither MEDS files in data/ nor a table events" in command("ehr-codes", tmp_path).error
    assert "has neither" in command("ehr-codes", tmp_path / "absent").error
