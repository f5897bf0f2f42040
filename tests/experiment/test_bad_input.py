"""A user's mistakes through the whole program: one sentence, exit code 2, nothing half-written."""

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from run_files import contents

from seqattn.data import archive

Lines = list[str]
Edit = Callable[[Lines], Lines | None]


def of_class(name: str, *, keep: bool) -> Edit:
    return lambda lines: [line for line in lines if line.endswith(f":{name}") is keep]


def third_case(case: str) -> Edit:
    return lambda lines: [*lines[:2], case, *lines[3:]]


def first_channel_only(lines: Lines) -> Lines:
    return [":".join([line.split(":")[0], line.split(":")[-1]]) for line in lines]


def second_channel_missing(lines: Lines) -> Lines:
    return [":".join([line.split(":")[0], "?", line.split(":")[-1]]) for line in lines]


def cut(steps: int) -> Edit:
    """Every series cut to its first steps."""
    return lambda lines: [
        ":".join([*(",".join(channel.split(",")[:steps]) for channel in line.split(":")[:-1]), line.split(":")[-1]])
        for line in lines
    ]


def same(lines: Lines) -> Lines:
    return lines


def absent(lines: Lines) -> None:
    return None


BAD_DATA: dict[str, tuple[Edit, Edit, list[str]]] = {
    "missing TRAIN": (absent, same, ["has Toy_TEST.ts but no Toy_TRAIN.ts", "put Toy_TRAIN.ts beside it"]),
    "missing TEST": (same, absent, ["has Toy_TRAIN.ts but no Toy_TEST.ts", "put Toy_TEST.ts beside it"]),
    "malformed TRAIN line": (third_case("1,x:2,3:rest"), same, ["Toy_TRAIN.ts, line 7: channel 1, value 2 is 'x'"]),
    "malformed TEST line": (same, third_case("1,2:rest"), ["Toy_TEST.ts, line 7: 1 channels where the first case"]),
    "unknown label": (
        of_class("walk", keep=False),
        same,
        ["Toy_TEST.ts, case 2: label 'walk' is not in the training data (rest, run-fast)"],
    ),
    "channels": (same, first_channel_only, ["Toy_TEST.ts has 1 channels, the training data 2"]),
    "missing channel": (second_channel_missing, same, ["Toy_TRAIN.ts: channel 2 has no value in any training case"]),
    "one class": (of_class("walk", keep=True), same, ["Toy_TRAIN.ts has one class only (walk)"]),
    "one case a class": (lambda lines: lines[:3], same, ["every class has a single training case", "--protocol paper"]),
    "too short for any period": (cut(2), cut(2), ["no period in a series of 2 steps", "longer series"]),
}


@pytest.mark.parametrize(("edit_train", "edit_test", "words"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_data_that_cannot_be_trained_on(command, new_toy, in_tmp, edit_train, edit_test, words) -> None:
    new_toy.write("Toy", edit_train(new_toy.lines(15, 0)), edit_test(new_toy.lines(9, 1)), equal=False)
    before = contents(new_toy.folder)
    done = command("train", "classification", "--dataset", "Toy", "--data-dir", new_toy.folder)
    assert all(part in done.error for part in words), done.error
    assert contents(in_tmp) == {}
    assert contents(new_toy.folder) == before


def test_a_channel_seen_only_in_one_fold_s_validation_part(train, new_toy, in_tmp) -> None:
    lines = new_toy.lines(15, 0)
    new_toy.write("Toy", [*second_channel_missing(lines[:-1]), lines[-1]], new_toy.lines(9, 1), equal=False)
    options = ["--set", "data.folds=2", "--set", "trainer.max_epochs=1"]
    done = train("Toy", in_tmp / "run", *options, data_dir=new_toy.folder)
    assert "channel 2 has no value in any training case" in done.error
    assert contents(in_tmp) == {}


BAD_OPTIONS = {
    "data set": ("--dataset BasicMotion", ["there is no data set 'BasicMotion'", "did you mean BasicMotions"]),
    "far data set": ("--dataset Zzzzzz", ["there is no data set 'Zzzzzz'", "put Zzzzzz_TRAIN.ts and Zzzzzz_TEST.ts"]),
    "data folder": ("--data-dir nowhere", ["nowhere does not exist"]),
    "data file": (f"--data-dir {__file__} --dataset Toy", ["test_bad_input.py is a file; give the folder that holds"]),
    "data folder without data": ("--data-dir .", [". holds no NAME_TRAIN.ts with its NAME_TEST.ts"]),
    "model and configuration": (
        "--model mamba --config mptsnet",
        ["the model 'mamba' asked for on the command line does not go with", "leave out --model"],
    ),
    "key": ("--set model.hiden=3", ["unknown configuration key 'model.hiden'", "did you mean model.hidden?"]),
    "file": ("--config absent.yaml", ["cannot read absent.yaml"]),
    "period": ("--set model.periods=[4,500]", ["period 500 does not fit series of at most 100 steps"]),
    "parameters": ("--set model.max_parameters=1000", ["max_parameters=1,000", "set token_steps"]),
    "heads": ("--set model.d_model=18", ["heads"]),
    "folds": ("--set data.folds=41", ["too few for 41 folds"]),
    "patience": ("--set trainer.patience=0", ["trainer.patience = 0 on the command line"]),
    "patience with folds": (
        "--set trainer.patience=20",
        ["trainer.patience is 20, but 4 folds", "set trainer.patience=null, or data.folds=1"],
    ),
    "folds of the paper protocol": (
        "--protocol paper --set data.folds=3",
        ["data.folds is 3, but protocol paper", "set data.folds=auto, or protocol=holdout"],
    ),
    "GPU": ("--accelerator gpu", ["this machine has no CUDA device", "--accelerator cpu"]),
    "half precision": ("--precision 16-mixed --accelerator cpu", ["needs a GPU"]),
    "resume": ("--resume .", [". is not a run directory", "config.yaml"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options_that_cannot_be(command, in_tmp, monkeypatch, options, words) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("train", "classification", *options.split())
    assert all(part in done.error for part in words), done.error
    assert contents(in_tmp) == {}


def test_one_case_a_class_trains_under_the_paper_protocol_as_the_error_says(train, new_toy, in_tmp) -> None:
    new_toy.write("Toy", new_toy.lines(3, 0), new_toy.lines(9, 1))
    assert "use --protocol paper" in train("Toy", in_tmp / "run", data_dir=new_toy.folder).error
    assert train("Toy", in_tmp / "run", "--protocol", "paper", data_dir=new_toy.folder).code == 0


def test_a_configuration_file_with_an_unknown_key(command, in_tmp) -> None:
    (in_tmp / "mine.yaml").write_text("data: {dataset: BasicMotions, batchsize: 3}\n")
    error = command("train", "classification", "--config", "mine.yaml").error
    assert "unknown configuration key 'data.batchsize' in mine.yaml; did you mean data.batch_size?" in error
    assert list(contents(in_tmp)) == [str(in_tmp / "mine.yaml")]


def test_a_data_set_to_download_without_a_network(command, in_tmp, environment, monkeypatch) -> None:
    def no_network(dataset: str, folder: str) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(archive, "_fetch", no_network)
    error = command("train", "classification", "--dataset", "Epilepsy").error
    assert "no network" in error
    assert f"put Epilepsy_TRAIN.ts and Epilepsy_TEST.ts into {environment['SEQATTN_DATA']}/Epilepsy" in error
    assert contents(in_tmp) == {}
    assert contents(Path(environment["XDG_CACHE_HOME"]) / "seqattn" / "datasets") == {}


def test_the_program_itself_exits_2_and_prints_one_line(environment, in_tmp) -> None:
    program = Path(sysconfig.get_path("scripts")) / "seqattn"
    arguments = ["train", "classification", "--dataset", "BasicMotion"]
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no data set 'BasicMotion'")
    assert done.stderr.count("\n") == 1
    assert contents(in_tmp) == {}


BAD_SERIES: dict[str, tuple[Edit, list[str]]] = {
    "channels": (first_channel_only, ["new.ts has 1 channels, the training data 2"]),
    "short": (
        lambda lines: [*lines[:4], *cut(3)(lines[4:])],
        ["new.ts, case 5: 3 steps", "the longest period is", "the shortest series of TRAIN and TEST had 9"],
    ),
    "malformed": (third_case("1,2:3,4,x:rest"), ["new.ts, line 7: channel 2, value 3 is 'x'"]),
    "no case": (lambda lines: [], ["new.ts has no cases after @data"]),
}


@pytest.mark.parametrize("before", ["an older table\n", None], ids=["overwriting", "new"])
@pytest.mark.parametrize(("edit", "words"), BAD_SERIES.values(), ids=BAD_SERIES.keys())
def test_series_that_cannot_be_predicted(command, new_toy, unequal_run, in_tmp, edit, words, before) -> None:
    file = new_toy.write_file(new_toy.folder / "new.ts", edit(new_toy.lines(6, 0)), equal=False)
    if before is not None:
        (in_tmp / "p.csv").write_text(before)
    done = command("predict", "classification", unequal_run, file, "-o", "p.csv", "--explain")
    assert all(part in done.error for part in words), done.error
    assert contents(in_tmp) == ({} if before is None else {str(in_tmp / "p.csv"): before.encode()})


def test_a_label_the_network_does_not_know(command, new_toy, unequal_run, in_tmp) -> None:
    file = new_toy.folder / "new.ts"
    file.write_text("@classLabel true rest jump\n@data\n" + "1,2,3,4,5,6,7,8,9:1,2,3,4,5,6,7,8,9:jump\n")
    error = command("predict", "classification", unequal_run, file, "-o", "p.csv").error
    assert "new.ts, case 1: label 'jump' is not in the training data (rest, walk, run-fast)" in error
    assert contents(in_tmp) == {}


@pytest.mark.parametrize("file", ["absent.ts", "series.csv", "."])
def test_a_file_that_is_none(command, unequal_run, in_tmp, file) -> None:
    (in_tmp / "series.csv").write_text("1,2\n")
    error = command("predict", "classification", unequal_run, file, "-o", "p.csv").error
    assert file in error
    assert list(contents(in_tmp)) == [str(in_tmp / "series.csv")]


@pytest.mark.parametrize("output", ["folder", ".", "x" * 300, "folder/file/p.csv"], ids=["folder", ".", "long", "file"])
def test_a_place_that_cannot_be_written(command, toy, unequal_run, in_tmp, output) -> None:
    (in_tmp / "folder").mkdir()
    (in_tmp / "folder" / "file").write_text("mine")
    before = contents(in_tmp)
    error = command("predict", "classification", unequal_run, toy.folder / "Unequal_TEST.ts", "-o", output).error
    assert "cannot write" in error
    assert contents(in_tmp) == before


def test_a_series_longer_than_a_network_of_fixed_length_takes(command, train, new_toy, toy, in_tmp) -> None:
    run = in_tmp / "run"
    fixed = ["--set", "data.folds=1", "--set", "model.head=flatten", "--set", "trainer.max_epochs=1"]
    assert train("Small", run, *fixed).code == 0
    before = contents(in_tmp)
    file = new_toy.write_file(new_toy.folder / "new.ts", new_toy.lines(3, 0, steps=20))
    error = command("predict", "classification", run, file, "-o", "p.csv").error
    assert "new.ts, case 1: 20 steps, but this network takes at most 16" in error
    assert contents(in_tmp) == before


def test_explaining_a_network_that_cannot_be_explained_writes_nothing(command, train, toy, in_tmp) -> None:
    run = in_tmp / "run"
    pointwise = ["--set", "data.folds=1", "--set", "model.pointwise=true", "--set", "trainer.max_epochs=1"]
    assert train("Small", run, *pointwise).code == 0
    before = contents(in_tmp)
    file = toy.folder / "Small_TEST.ts"
    assert "pointwise" in command("predict", "classification", run, file, "-o", "p.csv", "--explain").error
    assert contents(in_tmp) == before
