"""`--data-dir` and `data.data_dir`: what is searched, what needs no name, and runs that are used from elsewhere."""

from pathlib import Path

from run_files import results_config, results_of


def test_a_relative_data_folder_of_a_configuration_is_found_from_elsewhere(
    command, new_toy, tmp_path, monkeypatch
) -> None:
    new_toy.write("Toy", new_toy.lines(18, 7), new_toy.lines(18, 8))
    (tmp_path / "mine.yaml").write_text("data: {dataset: Toy, data_dir: toy, folds: 1}\nmodel: {hidden: 8, k: 2}\n")
    monkeypatch.chdir(tmp_path)
    sets = ["--set", "trainer.max_epochs=1", "--set", "model.d_model=16", "--set", "model.d_token=16"]
    for number, options in enumerate((["--config", "mine.yaml"], ["--set", "data.data_dir=toy", "--dataset", "Toy"])):
        done = command("train", "classification", *options, *sets, "--out", f"run-{number}")
        assert done.code == 0, done
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for run in (tmp_path / "run-0", tmp_path / "run-1"):
        assert results_config(run)["data"]["data_dir"] == str(new_toy.folder)
        before = (run / "predictions.csv").read_bytes()
        done = command("eval", "classification", run)
        assert (done.code, done.err) == (0, "")
        assert command("predict", "classification", run, "Toy", "-o", "p.csv").code == 0
        assert Path("p.csv").read_bytes() == before


def test_a_data_folder_with_one_set_needs_no_name(command, train, new_toy, in_tmp) -> None:
    new_toy.write("Toy", new_toy.lines(18, 7), new_toy.lines(18, 8))
    options = ["--set", "data.folds=1", "--set", "trainer.max_epochs=1", "--set", "model.hidden=8"]
    done = command("train", "classification", "--data-dir", new_toy.folder, "--out", "run", *options)
    assert done.code == 0, done
    assert results_of(Path("run"))["dataset"] == "Toy"
    new_toy.write("Other", new_toy.lines(18, 7), new_toy.lines(18, 8))
    error = command("train", "classification", "--data-dir", new_toy.folder).error
    assert "holds 2 data sets (Other, Toy): choose one with --dataset" in error
    for named in (["--set", "data.dataset=Other"], ["--dataset", "Other"]):
        done = command("train", "classification", "--data-dir", new_toy.folder, "--out", "run", *options, *named)
        assert "Other: test accuracy" in done.out


def test_a_bundled_set_beside_a_data_folder_is_read_and_said(train, toy, tmp_path) -> None:
    done = train("JapaneseVowels", tmp_path / "run", "--set", "trainer.max_epochs=1")
    assert done.code == 0, done
    first, second, *_ = done.err.splitlines()
    assert first.startswith(f"JapaneseVowels is not in {toy.folder}: reading it from ")
    assert second.startswith("note: ")
    assert "of 270 training series are shorter (down to 7 steps) than the longest period, " in second
    assert done.err.count("is not in") == done.err.count("note: ") == 1
