import errno
from pathlib import Path

import numpy as np
import pytest

from seqattn.data import cache
from seqattn.data.cache import cache_folder, load_series
from seqattn.data.series import SeriesSet
from seqattn.errors import SeqattnError

TOY = "@classLabel true up down\n@data\n1,2,?:4,5,6:up\n7:8:down\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.ts"
    path.write_text(TOY)
    return path


def copies() -> list[Path]:
    return sorted(cache_folder().rglob("*.*"))


def assert_same(first: SeriesSet, second: SeriesSet) -> None:
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.lengths, second.lengths)
    assert first.labels.tolist() == second.labels.tolist()
    assert first.classes == second.classes


def refuse_to_read(path: Path) -> SeriesSet:
    raise AssertionError(f"{path} was read again")


def test_second_read_comes_from_the_copy(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = load_series(toy)
    assert len(copies()) == 1
    monkeypatch.setitem(cache._READERS, ".ts", refuse_to_read)
    assert_same(load_series(toy), read)


def test_unlabelled_file_survives_the_cache(toy: Path) -> None:
    toy.write_text("@classLabel false\n@data\n1,2\n")
    assert_same(load_series(toy), load_series(toy))


def test_changed_file_is_read_again(toy: Path) -> None:
    load_series(toy)
    toy.write_text(TOY.replace("7", "9"))
    assert load_series(toy).values[1, 0, 0] == 9
    assert len(copies()) == 2


def test_another_reader_version_reads_again(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_series(toy)
    monkeypatch.setattr(cache, "READER_VERSION", cache.READER_VERSION + 1)
    load_series(toy)
    assert len(copies()) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other arrays", "other shape"])
def test_damaged_copy_is_replaced(toy: Path, damage: str) -> None:
    read = load_series(toy)
    (copy,) = copies()
    whole = copy.read_bytes()
    if damage == "other arrays":
        np.savez(copy, values=np.zeros(3))
    elif damage == "other shape":
        np.savez(copy, values=read.values, lengths=read.lengths[:1], labels=read.labels, classes=np.array(["up"]))
    else:
        copy.write_bytes({"truncated": whole[:300], "empty": b"", "garbage": b"PK\x03\x04" + whole[::-1]}[damage])
    assert_same(load_series(toy), read)
    assert_same(load_series(toy), read)
    assert copies() == [copy]
    assert copy.read_bytes() == whole


def test_unusable_cache_folder(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_series(toy).cases == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_cache_leaves_nothing(toy: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(np, "savez", fail)
    assert load_series(toy).cases == 2
    assert copies() == []


def test_cache_folder_is_never_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/seqattn")


def test_suffix_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SeqattnError, match=r"\.csv.*give a \.ts or \.arff"):
        load_series(tmp_path / "toy.csv")
    with pytest.raises(SeqattnError, match="is not a file"):
        load_series(tmp_path / "toy.ts")


def test_refused_file_leaves_no_copy(toy: Path) -> None:
    toy.write_text(TOY + "x:1:up\n")
    with pytest.raises(SeqattnError, match=r"toy\.ts, line 5"):
        load_series(toy)
    assert copies() == []
