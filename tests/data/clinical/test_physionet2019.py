import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from seqattn.data.clinical import physionet2019
from seqattn.data.clinical.physionet2019 import STATIC_VARIABLES, VARIABLES, read_physionet2019
from seqattn.errors import SeqattnError

REAL = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve() / "ehr" / "physionet2019"
SERIES = len(VARIABLES)
COLUMNS = [variable.name for variable in VARIABLES + STATIC_VARIABLES] + ["ICULOS", "SepsisLabel"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, patient: int, rows: int, onset: int | None = None) -> None:
    """A record whose heart rate is its row's number, with label 1 from row `onset` on."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["|".join(COLUMNS)]
    for row in range(rows):
        label = int(onset is not None and row >= onset)
        cells = [str(row), *["NaN"] * (SERIES - 1), "NaN" if row else "61.5", "1", "NaN", "NaN", "-3.5"]
        lines.append("|".join([*cells, str(row + 1), str(label)]))
    (folder / f"p{patient:06d}.psv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 patients: 20 with sepsis at row 20, 36 without, and one each of short, early, just in time and long."""
    root = tmp_path / "challenge"
    for patient in range(56):
        write(root / "training_setA", patient, 30, 20 if patient < 20 else None)
    write(root / "training_setA", 56, 11)
    write(root / "training_setA", 57, 30, 11)
    write(root / "training_setA", 58, 30, 12)
    write(root / "training_setA", 59, 100)
    return root


def rates(stays, name: str) -> list[float]:
    return stays.stay(stays.ids.tolist().index(name)).values[:, 0].tolist()


def test_landmark_gives_all_patients_the_same_rows(folder: Path) -> None:
    stays = read_physionet2019(folder)
    assert stays.window == 12
    assert stays.counts == {
        "patients labelled by hour 12 left out": 1,
        "patients with fewer than 12 rows left out": 1,
    }
    assert len(stays) == 58
    for name in ("p000000", "p000030", "p000058", "p000059"):
        assert rates(stays, name) == list(range(12))
    assert stays.stay(0).times.tolist() == list(range(12))
    assert stays.labels.sum() == 21
    assert {name: int((stays.splits == name).sum()) for name in ("train", "valid", "test")} == {
        "train": 46, "valid": 6, "test": 6,
    }  # fmt: skip


def test_label_cut_keeps_everyone_and_shows_nothing_after_the_first_label(folder: Path) -> None:
    stays = read_physionet2019(folder, cut="label")
    assert len(stays) == 60
    assert stays.labels.sum() == 22
    assert rates(stays, "p000000") == list(range(21))
    assert rates(stays, "p000030") == list(range(30))
    assert rates(stays, "p000057") == list(range(12))
    assert rates(stays, "p000059") == list(range(52, 100))
    assert stays.stay(0).times[-1] == 47  # the window's last hour
    assert stays.counts == {"values more than 48 hours before the cut left out": 52}


def test_prediction_cuts_after_the_last_row(folder: Path) -> None:
    stays = read_physionet2019(folder, window=12, labelled=False)
    assert (len(stays), set(stays.splits)) == (60, {""})
    assert rates(stays, "p000000") == list(range(18, 30))
    assert np.isnan(stays.labels).all()


def test_static_values_are_the_first_that_are_known(folder: Path) -> None:
    np.testing.assert_array_equal(read_physionet2019(folder).static[0], np.float32([61.5, 1, np.nan, np.nan, -3.5]))


def test_an_archive_reads_as_its_folder_and_then_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = read_physionet2019(folder)
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "training_setA.tar.xz", "w:xz") as archive:
        archive.add(folder / "training_setA", "training_setA")
    for again in (False, True):
        if again:
            monkeypatch.setattr(physionet2019, "joined", None)
        stays = read_physionet2019(packed)
        for name in ("ids", "times", "values", "labels", "static", "splits"):
            np.testing.assert_array_equal(getattr(stays, name), getattr(unpacked, name))


def test_two_hospitals_are_read_together(folder: Path) -> None:
    for patient in range(100_000, 100_010):
        write(folder / "training_setB", patient, 20)
    stays = read_physionet2019(folder)
    assert len(stays) == 68
    assert rates(stays, "p100003") == list(range(12))


def test_a_row_that_is_not_numbers_is_one_sentence(folder: Path) -> None:
    path = folder / "training_setA" / "p000003.psv"
    text = path.read_text()
    path.write_text(text.replace("\n5|", "\nfast|"))
    with pytest.raises(SeqattnError, match=r"training_setA, p000003.psv: HR is 'fast', a value is no number"):
        read_physionet2019(folder)
    path.write_text(text[:-2] + "7\n")
    with pytest.raises(SeqattnError, match=r"p000003.psv: SepsisLabel is 7; it must be 0 or 1"):
        read_physionet2019(folder)
    path.write_text(text[:-20])
    with pytest.raises(SeqattnError, match=r"p000003.psv: a row has not the 41 fields of the header"):
        read_physionet2019(folder)


@pytest.mark.parametrize(("options", "message"), [({"cut": "onset"}, "cut is 'onset'"), ({"hour": 0}, "hour is 0")])
def test_options_out_of_range(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(SeqattnError, match=message):
        read_physionet2019(folder, **options)


@pytest.mark.skipif(not REAL.is_dir(), reason="PhysioNet 2019 is not here")
def test_the_real_challenge_has_its_known_counts() -> None:
    stays = read_physionet2019(REAL, cut="label")
    assert len(stays) == 20_336
    assert stays.labels.sum() == 1790
    landmark = read_physionet2019(REAL)
    assert len(landmark) == 20_336 - sum(landmark.counts.values())
    assert landmark.times.max() == 11
