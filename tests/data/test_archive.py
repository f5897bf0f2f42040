"""Where data sets are found: the user's folders, sktime's, the cache, downloads."""

import socket
from pathlib import Path

import pytest
from uea_files import TEST, write_dataset

from seqattn.data import archive
from seqattn.data.archive import bundled_datasets, datasets_in, find_split, local_datasets
from seqattn.data.cache import cache_folder, load_series
from seqattn.data.uea import UEADataModule
from seqattn.errors import SeqattnError

pytestmark = pytest.mark.usefixtures("own_places")


@pytest.mark.parametrize("place", ["", "Toy", "uea/Toy"])
@pytest.mark.parametrize("given_by", ["argument", "variable", "beside"])
def test_find_split_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, given_by: str) -> None:
    root = tmp_path / "work" / "shared" / "data" if given_by == "beside" else tmp_path / "root"
    folder = write_dataset(root / place)
    if given_by == "variable":
        monkeypatch.setenv("SEQATTN_DATA", str(root))
    data_dir = root if given_by == "argument" else None
    assert find_split("Toy", "TEST", data_dir).resolve() == folder / "Toy_TEST.ts"
    assert local_datasets(data_dir) == ["Toy"]


def test_data_dir_comes_before_the_bundled_files(tmp_path: Path) -> None:
    assert "sktime" in find_split("BasicMotions", "TRAIN").parts
    folder = write_dataset(tmp_path / "mine", "BasicMotions")
    assert find_split("BasicMotions", "TRAIN", folder).parent == folder


def test_a_data_dir_without_the_set_is_searched_first_and_what_is_read_instead_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, variable = write_dataset(tmp_path / "mine"), write_dataset(tmp_path / "variable", "Other")
    monkeypatch.setenv("SEQATTN_DATA", str(variable))
    module = UEADataModule("BasicMotions", str(folder))
    module.setup()
    assert module.train_set.cases == 40
    bundled = find_split("BasicMotions", "TRAIN").parent
    assert capsys.readouterr().err == f"BasicMotions is not in {folder}: reading it from {bundled}\n"
    find_split("Other", "TEST", folder)
    assert capsys.readouterr().err == f"Other is not in {folder}: reading it from {variable}\n"
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SEQATTN_DATA", "../variable")
    find_split("Other", "TEST", ".")
    assert capsys.readouterr().err == f"Other is not in {folder}: reading it from ../variable\n"
    find_split("Toy", "TEST", ".")
    find_split("Toy", "TEST", folder)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("places", "names"),
    [
        ({"Toy": "", "Other": "Other", "Third": "uea/Third"}, ["Toy"]),
        ({"Other": "Other", "Third": "uea/Third"}, ["Other", "Third"]),
        ({"Third": "uea/Third"}, ["Third"]),
        ({}, []),
    ],
)
def test_datasets_in_a_folder(tmp_path: Path, places: dict[str, str], names: list[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name, place in places.items():
        write_dataset(root / place, name)
    write_dataset(root, "Half", test=None)
    assert datasets_in(root) == names


def test_bundled_datasets() -> None:
    names = bundled_datasets()
    assert {"BasicMotions", "JapaneseVowels", "GunPoint", "PLAID"} <= set(names)
    assert "Tecator" not in names
    for name in names:
        assert load_series(find_split(name, "TRAIN")).cases > 1


@pytest.mark.parametrize(("missing", "present"), [("TEST", "TRAIN"), ("TRAIN", "TEST")])
def test_one_split_is_missing(tmp_path: Path, missing: str, present: str) -> None:
    folder = write_dataset(tmp_path / "mine", **{missing.lower(): None})
    with pytest.raises(SeqattnError, match=f"has Toy_{present}.ts but no Toy_{missing}.ts"):
        find_split("Toy", "TRAIN", folder)


@pytest.mark.parametrize("name", ["basicmotion", "", "../x", "a\0b", "x" * 5000])
def test_unknown_dataset(name: str) -> None:
    with pytest.raises(SeqattnError, match="there is no data set") as caught:
        find_split(name, "TRAIN")
    assert name != "basicmotion" or "did you mean BasicMotions" in str(caught.value)


def test_missing_data_dir(tmp_path: Path) -> None:
    with pytest.raises(SeqattnError, match="no_such_folder does not exist"):
        find_split("BasicMotions", "TRAIN", tmp_path / "no_such_folder")
    file = write_dataset(tmp_path / "mine") / "Toy_TRAIN.ts"
    with pytest.raises(SeqattnError, match=r"Toy_TRAIN.ts is a file; give the folder that holds it"):
        find_split("Toy", "TRAIN", file)


def test_failed_download_says_where_to_put_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(dataset: str, folder: str) -> None:
        assert socket.getdefaulttimeout() is not None
        raise RuntimeError("Name or service\nnot known")

    monkeypatch.setattr(archive, "_fetch", fail)
    before = socket.getdefaulttimeout()
    with pytest.raises(SeqattnError, match="no network") as caught:
        UEADataModule("Epilepsy", str(tmp_path)).prepare_data()
    for part in ("Epilepsy_TRAIN.ts", "Epilepsy_TEST.ts", str(tmp_path / "Epilepsy")):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() == before


def test_download_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(dataset: str, folder: str) -> None:
        write_dataset(Path(folder) / dataset, dataset)

    monkeypatch.setattr(archive, "_fetch", fetch)
    path = find_split("Epilepsy", "TEST")
    assert path.read_text() == TEST
    monkeypatch.delattr(archive, "_fetch")
    assert find_split("Epilepsy", "TEST") == path
    assert [folder.name for folder in (cache_folder() / "datasets").iterdir()] == ["Epilepsy"]
