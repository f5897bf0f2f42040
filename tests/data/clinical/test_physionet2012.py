import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqattn.data.cache import cache_folder
from seqattn.data.clinical import physionet2012
from seqattn.data.clinical.partition import random_splits
from seqattn.data.clinical.physionet2012 import VARIABLES, read_physionet2012
from seqattn.data.clinical.records import Stays, describe
from seqattn.errors import SeqattnError

REAL = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve() / "ehr" / "physionet2012"
NAMES = [variable.name for variable in VARIABLES]
HEADER = "Time,Parameter,Value\n"
FIXED = "00:00,RecordID,{record}\n00:00,Age,{age}\n00:00,Gender,1\n00:00,Height,-1\n00:00,ICUType,3\n00:00,Weight,80\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sets of 20 stays; every fourth dies, and record N has heart rate N at 7 minutes past every hour to N."""
    root = tmp_path / "challenge"
    for place, name in enumerate("abc"):
        (root / f"set-{name}").mkdir(parents=True)
        outcomes = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
        for number in range(20 * place, 20 * place + 20):
            rows = "".join(f"{hour:02d}:07,HR,{number + 40}\n" for hour in range(1 + number % 5))
            write(root, name, 1000 + number, FIXED.format(record=1000 + number, age=number + 20) + rows)
            outcomes.append(f"{1000 + number},1,1,{number % 7 - 1},-1,{int(number % 4 == 0)}")
        (root / f"Outcomes-{name}.txt").write_text("\n".join(outcomes) + "\n")
    return root


def write(root: Path, name: str, record: int, rows: str) -> None:
    (root / f"set-{name}" / f"{record}.txt").write_text(HEADER + rows)


def splits(stays: Stays) -> dict[str, int]:
    return {name: int((stays.splits == name).sum()) for name in ("train", "valid", "test")}


def test_series_static_values_and_labels(folder: Path) -> None:
    stays = read_physionet2012(folder)
    assert (len(stays), splits(stays)) == (60, {"train": 20, "valid": 20, "test": 20})
    stay = stays.stay(3)
    assert stay.id == stay.subject == "1003"
    np.testing.assert_allclose(stay.times, [0, 7 / 60, 1 + 7 / 60, 2 + 7 / 60, 3 + 7 / 60], rtol=1e-6)
    assert stay.values[1:, NAMES.index("HR")].tolist() == [43] * 4
    assert stay.values[0, NAMES.index("Weight")] == 80
    assert stay.mask.sum() == 5
    np.testing.assert_array_equal(stay.static, [23, 1, np.nan, 0, 0, 1, 0])
    assert stays.labels[:8, 0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert stays.counts == {"negative values taken as missing": 60}


def test_an_archive_reads_as_its_folder_and_then_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = read_physionet2012(folder)
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in "abc":
        with tarfile.open(packed / f"set-{name}.tar.xz", "w:xz") as archive:
            archive.add(folder / f"set-{name}", f"set-{name}")
        (packed / f"Outcomes-{name}.txt").write_bytes((folder / f"Outcomes-{name}.txt").read_bytes())
    assert not list(cache_folder().rglob("*.npz"))
    for again in (False, True):
        if again:
            monkeypatch.setattr(physionet2012, "joined", None)
        stays = read_physionet2012(packed)
        assert stays.counts == unpacked.counts
        for name in ("ids", "times", "values", "labels", "static", "splits"):
            np.testing.assert_array_equal(getattr(stays, name), getattr(unpacked, name))
    copies = list(cache_folder().rglob("*.npz"))
    assert len(copies) == 3
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copies[0].write_bytes(b"damaged")
    assert len(read_physionet2012(packed)) == 60


def test_rows_without_name_and_stays_without_series_are_left_out_and_counted(folder: Path) -> None:
    write(folder, "c", 1041, FIXED.format(record=1041, age=50))
    write(
        folder,
        "c",
        1042,
        FIXED.format(record=1042, age=50) + "00:10,,7\n00:20,HR,90\n00:20,HR,91\n00:30,HR,\n00:31,HR,inf\n",
    )
    stays = read_physionet2012(folder)
    assert len(stays) == 59
    assert "1041" not in stays.ids
    assert stays.stay(stays.ids.tolist().index("1042")).values[:, NAMES.index("HR")].tolist() == [0, 91]
    assert describe(stays.counts) == [
        "60 negative values taken as missing",
        "1 rows without a parameter's name left out",
        "2 rows without a finite value left out",
        "1 stays without series left out",
        "1 events repeated at the same time: last kept",
    ]


def test_length_of_stay_leaves_unknown_lengths_out(folder: Path) -> None:
    stays = read_physionet2012(folder, label="length_of_stay")
    assert stays.counts["stays of unknown length left out"] == 9
    assert len(stays) == 51
    assert stays.labels[:6, 0].tolist() == [0, 0, 0, 0, 1, 1]  # 0 to 5 days


def test_random_split_is_stratified_and_drawn_from_the_seed(folder: Path) -> None:
    stays = read_physionet2012(folder, split="random", seed=1)
    assert splits(stays) == {"train": 48, "valid": 6, "test": 6}
    assert 1 <= stays.labels[stays.splits == "test"].sum() <= 2
    np.testing.assert_array_equal(stays.splits, read_physionet2012(folder, split="random", seed=1).splits)
    assert (stays.splits != read_physionet2012(folder, split="random", seed=2).splits).any()


def test_strats_split_tests_on_set_a(folder: Path) -> None:
    stays = read_physionet2012(folder, split="strats")
    assert splits(stays) == {"train": 32, "valid": 8, "test": 20}
    assert stays.ids[stays.splits == "test"].tolist() == [str(record) for record in range(1000, 1020)]


def test_one_set_without_outcomes_can_be_predicted(folder: Path) -> None:
    for path in [*folder.glob("Outcomes-*"), *folder.glob("set-[ab]/*")]:
        path.unlink()
    for name in "ab":
        (folder / f"set-{name}").rmdir()
    stays = read_physionet2012(folder, labelled=False)
    assert (len(stays), set(stays.splits)) == (20, {""})
    assert np.isnan(stays.labels).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7:xx,HR,80", r"1005.txt: the row '7:xx,HR,80' is no time HH:MM"),
        ("00:07,HR,8,0", r"1005.txt: a row has not the 3 fields"),
        ("00:07,HR,fast", r"the row '00:07,HR,fast'"),
        ("-1:07,HR,80", "the row"),
        ("00:07,Hr2,80", r"set-a, 1005.txt: parameter 'Hr2' is not one of the challenge; did you mean HR"),
        ("00:07,Foo,3", r"set-a, 1005.txt: parameter 'Foo' is not one of the challenge; known are RecordID, Age"),
        ("00:00,ICUType,9", r"set-a, 1005.txt: ICUType is 9; it must be one of 1, 2, 3, 4, or -1"),
        ("00:00,Gender,2", r"set-a, 1005.txt: Gender is 2; it must be one of 0, 1, or -1"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(folder: Path, row: str, message: str) -> None:
    write(folder, "a", 1005, FIXED.format(record=1005, age=20) + row + "\n")
    with pytest.raises(SeqattnError, match=message):
        read_physionet2012(folder)


def test_wrong_files_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / "set-a" / "1000.txt").write_text("Zeit,Parameter,Value\n")
    with pytest.raises(SeqattnError, match=r"1000.txt: the header has no column 'Time' \(it has Zeit\)"):
        read_physionet2012(folder)
    with pytest.raises(SeqattnError, match="does not exist"):
        read_physionet2012(tmp_path / "nowhere")
    with pytest.raises(SeqattnError, match="holds no physionet2012"):
        read_physionet2012(tmp_path)
    (folder / "set-a").rename(folder / "other")
    (folder / "set-a.tar.xz").write_bytes(b"no archive")
    with pytest.raises(SeqattnError, match=r"set-a.tar.xz is damaged"):
        read_physionet2012(folder)


def test_missing_outcome_and_wrong_options(folder: Path) -> None:
    with pytest.raises(SeqattnError, match=r"'mortalty' is none of .* mean mortality"):
        read_physionet2012(folder, label="mortalty")  # type: ignore[arg-type]
    path = folder / "Outcomes-b.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(SeqattnError, match=r"record 1039 has no row in .*Outcomes-b.txt"):
        read_physionet2012(folder)
    path.write_text(path.read_text().replace("Length_of_stay", "Length_of_stays"))
    with pytest.raises(SeqattnError, match=r"no column 'Length_of_stay'; did you mean Length_of_stays\?"):
        read_physionet2012(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1039,1,1,4,-1,?", r"Outcomes-b.txt, line 21: label 'In-hospital_death' is \?; it must be 0 or 1"),
        ("1039,1,1,4,-1,", r"line 21: label 'In-hospital_death' is nan"),
        ("1039,1,1,4,-1,0\n1020,1,1,4,-1,0", r"line 22: record 1020 is there twice"),
        ("10x,1,1,4,-1,0", r"line 21: RecordID is '10x', not a whole number"),
    ],
)
def test_outcomes_that_cannot_be_read(folder: Path, row: str, message: str) -> None:
    path = folder / "Outcomes-b.txt"
    path.write_text("\n".join([*path.read_text().splitlines()[:-1], row, ""]))
    with pytest.raises(SeqattnError, match=message):
        read_physionet2012(folder)


def test_outcomes_without_a_record_are_counted(folder: Path) -> None:
    (folder / "set-b" / "1039.txt").unlink()
    stays = read_physionet2012(folder)
    assert len(stays) == 59
    assert stays.counts["outcomes without a record left out"] == 1
    write(folder, "a", 1038, FIXED.format(record=1038, age=20))
    with (folder / "Outcomes-a.txt").open("a") as file:
        file.write("1038,1,1,4,-1,0\n")
    with pytest.raises(SeqattnError, match="record 1038 is in two of the sets"):
        read_physionet2012(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="PhysioNet 2012 is not here")
def test_the_real_challenge_has_its_known_counts() -> None:
    stays = read_physionet2012(REAL)
    assert len(stays) == 11_988
    assert len(stays.variables) == 37
    assert splits(stays) == {"train": 3997, "valid": 3993, "test": 3998}
    deaths = [int(stays.labels[stays.splits == name].sum()) for name in ("train", "valid", "test")]
    assert deaths == [554, 568, 585]
    assert stays.counts["stays without series left out"] == 12
    assert stays.counts["rows without a parameter's name left out"] == 2403
    assert stays.times.max() <= 48
    drawn = replace(stays, splits=random_splits(stays, 0))
    assert splits(drawn) == {"train": 9590, "valid": 1199, "test": 1199}
