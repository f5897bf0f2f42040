"""Health records and options that cannot be used: one sentence, exit code 2, nothing written; or kept and counted."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Change = Callable[[Path], object]


def text(table: str, before: str, after: str, count: int = 1) -> Change:
    """Replace a pattern in a table."""

    def change(folder: Path) -> None:
        path = folder / f"{table}.csv"
        content, changed = re.subn(before, after, path.read_text(), count=count, flags=re.MULTILINE)
        assert changed, before
        path.write_text(content)

    return change


def line(table: str, *lines: str) -> Change:
    """Add lines to a table."""

    def change(folder: Path) -> None:
        with (folder / f"{table}.csv").open("a") as file:
            file.write("".join(f"{entry}\n" for entry in lines))

    return change


def new(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def header_only(table: str) -> Change:
    return lambda folder: (folder / f"{table}.csv").write_text((folder / f"{table}.csv").read_text().split("\n")[0])


SCHEMA = json.dumps({
    "version": 1, "window": 48, "steps": 48, "labels": [],
    "variables": [
        {"name": "HR", "low": 0, "high": 300},
        {"name": "Temp", "kind": "category", "categories": {"low": 0, "normal": 1, "high": 2}},
    ],
})  # fmt: skip

BAD_TABLES: dict[str, tuple[list[Change], list[str]]] = {
    "wrong column": (
        [text("events", "^id,time,variable", "id,time,varaible")],
        ["'variable'", "did you mean varaible"],
    ),
    "unknown column": ([text("notes", "^id,time,text", "id,time,text,x")], ["unknown column 'x'"]),
    "empty file": ([new("events.csv", "")], ["events.csv is empty"]),
    "no rows": ([header_only("events")], ["events.csv has no rows"]),
    "no labels": ([lambda folder: (folder / "labels.csv").unlink()], ["has no table labels"]),
    "no label column": ([text("labels", ",[^\n]*$", "", 0)], ["has no column with a label"]),
    "not a number": ([line("events", "s001,3,HR,fast")], ["events.csv, line", "value is 'fast', not a number"]),
    "unknown category": (
        [new("schema.json", SCHEMA), line("events", "s001,3,Temp,hihg")],
        ["unknown category 'hihg'", "did you mean high"],
    ),
    "mixed times": ([line("events", "s001,2024-05-31 12:00:00,HR,80")], ["give hours or timestamps, not both"]),
    "timestamps alone": ([text("events", r"^(s\d+),[\d.]+", r"\1,2024-05-31 12:00:00", 0)], ["add a table anchors"]),
    "no time": ([line("events", "s001,,HR,80")], ["the time is missing"]),
    "events of no label": ([line("events", "s999,3,HR,80")], ["1 stays of the table events have no row in", "s999"]),
    "a label of nobody": ([line("labels", "s999,1,0")], ["1 labels", "belong to no stay", "s999"]),
    "a label twice": ([line("labels", "s001,1,0")], ["stay s001 is there twice"]),
    "a label of 2": ([text("labels", r"^(s002),\d", r"\1,2")], ["label 'death' is 2; it must be 0 or 1"]),
    "a label missing": ([text("labels", r"^(s002),\d", r"\1,")], ["label 'death' is nan; it must be 0 or 1"]),
    "an absent patient's split": (
        [new("splits.csv", "id,split\ns001,train\ns998,test\n")],
        ["1 entries of", "name no id of the data, the first is s998"],
    ),
    "an unknown split": ([new("splits.csv", "id,split\ns001,trian\n")], ["split is 'trian'; did you mean train"]),
    "no test split": (
        [lambda folder: new("splits.csv", "id,split\n" + "".join(f"s{n:03d},train\n" for n in range(60)))(folder)],
        ["has no stays to test on"],
    ),
    "one kind of label": (
        [text("labels", r"^(s\d+),\d,\d", r"\1,0,0", 0)],
        ["all training stays have the same label 'death'"],
    ),
    "a subject in two splits": (
        [
            text("static", "^id", "id,subject"),
            text("static", r"^(s\d+),", r"\1,p1,", 0),
            new("splits.csv", "id,split\ns001,train\ns002,test\ns003,valid\n"),
        ],
        ["subject p1 has stays in"],
    ),
    "a damaged schema": ([new("schema.json", "{")], ["schema.json is not JSON (line 1"]),
}


@pytest.mark.parametrize(("changes", "words"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_tables_that_cannot_be_used(changes, words, new_tables, train_ehr, tmp_path, in_tmp) -> None:
    data = new_tables.write("data", new_tables.rows(60))
    for change in changes:
        change(data)
    error = train_ehr(data, tmp_path / "run").error
    assert all(part in error for part in words), error
    assert not (tmp_path / "run").exists()
    assert os.listdir(in_tmp) == []


COUNTED: dict[str, tuple[list[Change], str]] = {
    "negative and late times": (
        [line("events", "s001,-1,HR,80", "s001,48.5,HR,80")],
        "2 events outside the window left",
    ),
    "out of order": ([line("events", "s001,0,HR,80")], "1 events out of order sorted"),
    "duplicates": (
        [line("events", "s059,47.999,HR,80", "s059,47.999,HR,82")],
        "1 events repeated at the same time: last",
    ),
    "NaN and infinity": (
        [line("events", "s059,47.999,HR,nan", "s059,47.999,HR,inf", "s059,47.999,HR,1e50")],
        "3 events with a missing or infinite value left out",
    ),
    "units": ([new("schema.json", SCHEMA), line("events", "s059,47.999,HR,900")], "values clipped to their variable's"),
    "no events": ([], "1 stays without events kept"),
}


@pytest.mark.parametrize(("changes", "words"), COUNTED.values(), ids=COUNTED.keys())
def test_what_is_kept_is_counted_and_printed(changes, words, new_tables, train_ehr, tmp_path) -> None:
    data, run = new_tables.write("data", new_tables.rows(60)), tmp_path / "run"
    for change in changes:
        change(data)
    done = train_ehr(data, run, "--set", "trainer.max_epochs=1")
    assert done.code == 0, done
    assert words in done.err
    left_out = json.loads((run / "results.json").read_text())["left_out"]
    assert any(words in f"{count:,} {phrase}" for phrase, count in left_out.items()), left_out


def test_100_000_rows_of_one_patient_are_cut(new_tables, train_ehr, tmp_path) -> None:
    data, run = new_tables.write("data", new_tables.rows(60)), tmp_path / "run"
    line("events", *(f"s001,{48 * number / 100_000:.5f},HR,80" for number in range(100_000)))(data)
    done = train_ehr(data, run, "--set", "trainer.max_epochs=1", "--set", "data.max_rows=100")
    assert done.code == 0, done
    assert "1 stays cut to their latest 99 times" in done.err


BAD_OPTIONS = {
    "data set": ("--dataset physionet2021", ["'physionet2021'; did you mean physionet2019 or physionet2012"]),
    "folder": ("--dataset ./nowhere", ["there is no data set and no folder './nowhere'"]),
    "empty folder": ("--dataset .", ["has no table events.parquet or events.csv"]),
    "data folder": ("--dataset physionet2012 --data-dir nowhere", ["nowhere does not exist"]),
    "no data": ("--dataset mimic3-ihm --data-dir .", ["holds no"]),
    "option": ("--set data.options.widnow=24", ["has no option 'widnow'; did you mean window"]),
    "window": ("--set data.options.window=abc", ["data.options =", "window must be a number of at least 0.1"]),
    "negative window": ("--set data.options.window=-5", ["window must be a number of at least 0.1"]),
    "NaN window": ("--set data.options.window=.nan", ["window must be a number of at least 0.1"]),
    "earliest note": ("--set data.options.earliest_note=x", ["earliest_note must be a number"]),
    "number of stays": ("--dataset synthetic --set data.options.stays=1.5", ["stays must be a whole number of at"]),
    "duplicates": ("--set data.options.duplicates=5", ["duplicates is 5; it must be one of last, first"]),
    "key": ("--set model.embed_dmi=8", ["'model.embed_dmi' on the command line; did you mean model.embed_dim?"]),
    "heads": ("--set model.num_heads=3", ["3 heads do not divide 8 channels"]),
    "time heads": ("--set model.time_heads=3", ["3 heads do not divide embed_time=8"]),
    "fusion": ("--set model.fusion=sum", ["model.fusion = 'sum' on the command line"]),
    "model": ("--model gru_e", ["model.name = 'gru_e'", "did you mean gru_d"]),
    "configuration": ("--config sereis", ["no ehr configuration is named 'sereis'; did you mean series"]),
    "selection": ("--selection auc", ["selection = 'auc' on the command line", "'auprc', 'auroc' or 'f1'"]),
    "weights": ("--set class_weights=2", ["class_weights = 2 on the command line"]),
    "notes": ("--config interleaved --set data.notes=null", ["this model reads notes, but data.notes is null"]),
    "notes file": ("--config interleaved --set data.notes=nowhere.npy", ["nowhere.npy does not exist"]),
    "fold": ("--set data.folds=2 --set data.fold=2", ["fold is 2; it must lie between 0 and 1"]),
    "encoder": ("--config interleaved --set model.encoder=lstm", ["the interleaved fusion attends throughout"]),
    "GPU": ("--accelerator gpu", ["this machine has no CUDA device", "--accelerator cpu"]),
    "devices": ("--devices 99 --accelerator cpu", ["6 validation stays cannot be shared by 99 processes"]),
    "half precision": ("--precision 16-mixed --accelerator cpu", ["needs a GPU"]),
    "resume": ("--resume nowhere --seed 1", ["leave the other options out"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options_that_cannot_be_used(options, words, stay_tables, ehr_sets, command, in_tmp, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words_of = options.split()
    data = [] if {"--dataset", "--resume"} & set(words_of) else ["--dataset", stay_tables]
    error = command("train", "ehr", *data, *ehr_sets(), *words_of).error
    assert all(part in error for part in words), error
    assert os.listdir(in_tmp) == []


def test_validation_stays_of_one_kind_cannot_choose(new_tables, train_ehr, tmp_path) -> None:
    rows = new_tables.rows(60)
    healthy = [row["id"] for row in rows["labels"] if not row["death"] and not row["sepsis"]]
    rows["splits"] = [{"id": identity, "split": "valid"} for identity in healthy[:4]]
    known = set(healthy[:4])
    others = [row["id"] for row in rows["labels"] if row["id"] not in known]
    rows["splits"] += [{"id": identity, "split": "train" if n % 4 else "test"} for n, identity in enumerate(others)]
    error = train_ehr(new_tables.write("data", rows), tmp_path / "run").error
    assert "all 4 validation stays have the same label" in error
    assert not (tmp_path / "run").exists()


def test_test_stays_of_one_kind_leave_measures_out(new_tables, train_ehr, command, tmp_path) -> None:
    rows, run = new_tables.rows(60), tmp_path / "run"
    rows["labels"] = [{"id": row["id"], "death": row["death"]} for row in rows["labels"]]
    healthy = [row["id"] for row in rows["labels"] if not row["death"]][:4]
    others = [row["id"] for row in rows["labels"] if row["id"] not in healthy]
    rows["splits"] = [{"id": identity, "split": "test"} for identity in healthy]
    rows["splits"] += [{"id": identity, "split": "train" if n % 3 else "valid"} for n, identity in enumerate(others)]
    done = train_ehr(new_tables.write("data", rows), run)
    assert done.code == 0, done
    assert "test AUROC -, AUPRC - on 4 stays" in done.out
    test = json.loads((run / "results.json").read_text())["test"]
    assert (test["auroc"], test["auprc"], test["interval"]["auroc"]) == (None, None, [None, None])
    assert test["brier"] > 0


def test_runs_that_cannot_be_used(series_run, stay_tables, command, in_tmp) -> None:
    assert "there is no run directory absent" in command("predict", "ehr", "absent", stay_tables).error
    Path("config.yaml").write_text("task: speech\n")
    assert "is a run of speech, not of ehr" in command("eval", "ehr", ".").error
    done = command("predict", "ehr", series_run, "nowhere")
    assert "there is no data set and no folder 'nowhere'" in done.error
    Path("new").mkdir()
    Path("new/events.csv").write_text("id,time,variable,value\n")
    assert "has no rows" in command("predict", "ehr", series_run, "new").error
    assert sorted(os.listdir(in_tmp)) == ["config.yaml", "new"]
