import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from seqattn.data.clinical.mimic3 import read_mimic3
from seqattn.data.clinical.mimic3_variables import VARIABLES
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.synthetic_mimic import LATE, PHENOTYPES, write_synthetic_mimic
from seqattn.errors import SeqattnError

NAMES = [variable.name for variable in VARIABLES]
HEADER = ",".join(["Hours", *NAMES])
TASK = "in-hospital-mortality"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mimic") / "data"
    write_synthetic_mimic(folder, stays=60, seed=3)
    return folder


@pytest.fixture
def folder(generated: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(generated, tmp_path / "data"))


def first(stays: Stays) -> tuple[str, str, str]:
    """Id, subject and number of the first training stay."""
    name = str(stays.ids[np.flatnonzero(stays.splits == "train")[0]])
    subject, number = name.split("_episode")
    return name, subject, number


def write_series(folder: Path, name: str, rows: list[str]) -> None:
    (folder / TASK / "train" / f"{name}_timeseries.csv").write_text("\n".join([HEADER, *rows, ""]))


def row(hours: float, **values: object) -> str:
    cells = {name.replace(" ", "_"): value for name, value in zip(NAMES, [""] * len(NAMES), strict=True)}
    return ",".join([str(hours), *map(str, {**cells, **values}.values())])


def intime(folder: Path, subject: str) -> np.datetime64:
    lines = (folder / "root" / "train" / subject / "stays.csv").read_text().splitlines()
    column = lines[0].split(",").index("INTIME")
    return min(np.datetime64(line.split(",")[column], "us") for line in lines[1:])


def stamp(time: np.datetime64, hours: float) -> str:
    return str(time + np.timedelta64(round(hours * 3600), "s")).replace("T", " ")


def test_mortality(generated: Path) -> None:
    stays = read_mimic3(generated)
    assert (len(stays), stays.window, stays.label_names) == (60, 48, ("mortality",))
    assert set(stays.splits) == {"train", "valid", "test"}
    assert stays.times.max() <= 48
    assert 0.1 < stays.labels.mean() < 0.6
    assert len(np.unique(stays.subjects)) < 60  # some have two stays
    for subject in np.unique(stays.subjects):
        assert len(set(stays.splits[stays.subjects == subject])) == 1


def test_phenotypes_take_the_first_day(generated: Path) -> None:
    stays = read_mimic3(generated, task="pheno")
    assert (stays.window, stays.label_names) == (24, PHENOTYPES)
    assert list(PHENOTYPES) == sorted(PHENOTYPES)
    assert stays.times.max() <= 24
    assert stays.counts["events outside the window left out"] > 0
    assert stays.notes is not None
    assert stays.notes.times.max() <= 24


def test_stays_shorter_than_a_day_are_left_out(folder: Path) -> None:
    path = folder / "phenotyping" / "train_listfile.csv"
    lines = path.read_text().splitlines()
    lines[1] = re.sub(r",[\d.]+,", ",23.9,", lines[1], count=1)
    path.write_text("\n".join(lines) + "\n")
    stays = read_mimic3(folder, task="pheno")
    assert stays.counts["stays shorter than 24 hours left out"] == 1
    assert len(stays) == 59


def test_values_categories_and_the_windows_ends(folder: Path) -> None:
    name, _, _ = first(read_mimic3(folder))
    rows = [
        row(-5e-7, Heart_Rate=80, Glascow_coma_scale_eye_opening="None"),
        row(1.5, Glascow_coma_scale_eye_opening="4 Spontaneously", Glascow_coma_scale_verbal_response="1.0 ET/Trach"),
        row(48 + 5e-7, Glascow_coma_scale_motor_response="Obeys Commands", pH=7.4),
        row(48.1, Heart_Rate=90),
    ]
    write_series(folder, name, rows)
    stays = read_mimic3(folder)
    stay = stays.stay(stays.ids.tolist().index(name))
    assert stay.times.tolist() == [0, 1.5, 48]
    seen = [{NAMES[c]: float(stay.values[r, c]) for c in np.flatnonzero(stay.mask[r])} for r in range(3)]
    assert seen[0] == {"Heart Rate": 80, "Glascow coma scale eye opening": 0}
    assert seen[1] == {"Glascow coma scale eye opening": 4, "Glascow coma scale verbal response": 1}
    assert seen[2] == {"Glascow coma scale motor response": 6, "pH": pytest.approx(7.4)}


def test_late_notes_do_not_leak(generated: Path) -> None:
    """The generator writes who died into notes just after the window: none of them is read, unless asked for."""
    stays = read_mimic3(generated)
    assert stays.notes is not None
    assert LATE not in stays.notes.texts
    assert stays.notes.times.max() <= 48
    assert stays.counts["notes outside the window left out"] == stays.labels.sum()
    leaking = read_mimic3(generated, clock="official", start_times=generated / "start_times.csv")
    assert leaking.notes is not None
    owners = np.repeat(np.arange(len(leaking)), np.diff(leaking.notes.starts))
    late = [owner for owner, text in zip(owners, leaking.notes.texts, strict=True) if text == LATE]
    assert leaking.labels[late].all()
    assert len(late) == leaking.labels.sum()


def test_clocks(folder: Path) -> None:
    """INTIME's clock, and the published one: hours since the given start, less 1."""
    name, subject, number = first(read_mimic3(folder))
    start = intime(folder, subject)
    hours = (-25, -23, 0.5, 47.9, 48.1, 49.9, 50.2)
    notes = [{"time": stamp(start, hour), "text": str(hour), "category": "Nursing"} for hour in hours]
    notes += [{"time": stamp(start, 0.5), "text": text} for text in ("of the same time", " ", None)]
    (folder / "notes" / f"{subject}_{number}").write_text(json.dumps(notes))
    place = read_mimic3(folder).ids.tolist().index(name)

    stay = read_mimic3(folder).stay(place)
    assert stay.note_texts == ("-23", "0.5", "of the same time", "47.9")
    np.testing.assert_allclose(stay.note_times, [-23, 0.5, 0.5, 47.9], rtol=1e-4)
    assert read_mimic3(folder).counts["notes without text left out"] == 2
    assert read_mimic3(folder, earliest_note=0).stay(place).note_texts == ("0.5", "of the same time", "47.9")

    (folder / "starts.json").write_text(json.dumps({f"{subject}_{number}": stamp(start, 1.0)}))
    official = read_mimic3(folder, clock="official", start_times=folder / "starts.json")
    assert official.stay(place).note_texts == ("-25", "-23", "0.5", "of the same time", "47.9", "48.1", "49.9")
    np.testing.assert_allclose(official.stay(place).note_times[[0, -1]], [-27, 47.9], rtol=1e-4)
    assert official.counts["notes of stays without a start left out"] > 0


def test_the_second_stay_of_a_subject_has_its_own_clock(generated: Path) -> None:
    """stays.csv has the latest first; notes of both stays lie inside their own windows."""
    stays = read_mimic3(generated)
    second = [place for place, name in enumerate(stays.ids.tolist()) if name.endswith("episode2")]
    assert second
    for place in second:
        assert len(stays.stay(place).note_texts) >= 2


def test_without_notes_and_without_labels(folder: Path) -> None:
    assert read_mimic3(folder, with_notes=False).notes is None
    shutil.rmtree(folder / "notes")
    labelled = read_mimic3(folder)
    assert labelled.notes is None
    stays = read_mimic3(folder, labelled=False)
    assert set(stays.ids) == set(labelled.ids[labelled.splits == "test"])
    (folder / TASK / "test_listfile.csv").unlink()
    assert sorted(read_mimic3(folder, labelled=False).ids) == sorted(stays.ids)
    with pytest.raises(SeqattnError, match=r"test_listfile.csv does not exist"):
        read_mimic3(folder)
    with pytest.raises(SeqattnError, match=r"folder of notes .* does not exist"):
        read_mimic3(folder, notes_dir=folder / "notes", labelled=False)


def test_validation_list_may_be_absent(folder: Path) -> None:
    (folder / TASK / "val_listfile.csv").unlink()
    assert set(read_mimic3(folder).splits) == {"train", "test"}


def test_unknown_category_offers_the_nearest(folder: Path) -> None:
    name, _, _ = first(read_mimic3(folder))
    write_series(folder, name, [row(1, Glascow_coma_scale_eye_opening="Spontaneous")])
    with pytest.raises(SeqattnError, match=rf"{name}_timeseries.csv: .*unknown category 'Spontaneous'.*mean Spont"):
        read_mimic3(folder)


def again(folder: Path, name: str, line: str) -> None:
    """Another line in a listfile."""
    with (folder / TASK / f"{name}_listfile.csv").open("a") as file:
        file.write(f"{line}\n")


def header(folder: Path, name: str, before: str, after: str) -> None:
    path = folder / TASK / "train" / f"{name}_timeseries.csv"
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, n, s: write_series(f, n, ["1" + "," * 17, "1,fast" + "," * 16]),
         "_episode1_timeseries.csv: Capillary refill rate is 'fast', a value is no number"),
        (lambda f, n, s: header(f, n, "Heart Rate", "Hart Rate"), "no column 'Heart Rate'; did you mean Hart Rate"),
        (lambda f, n, s: header(f, n, "Height,", ""), "no column 'Height'; mend"),
        (lambda f, n, s: header(f, n, "pH", "pH,pO2"), "a column 'pO2' that is not due"),
        (lambda f, n, s: header(f, n, "Weight,pH", "pH,Weight"), "column 17 of the header is 'pH', which is out"),
        (lambda f, n, s: write_series(f, n, ["1,80" + "," * 19]), "a row has not the 18 fields"),
        (lambda f, n, s: (f / TASK / "train" / f"{n}_timeseries.csv").unlink(), "which the listfile names, cannot be"),
        (lambda f, n, s: (f / TASK / "train" / f"{n}_timeseries.csv").write_text("Hour\n"), "no column 'Hours'; did"),
        (lambda f, n, s: (f / TASK / "train_listfile.csv").write_text("stays,y_true\n"), "no column 'stay' .*; did"),
        (lambda f, n, s: again(f, "train", f"{n}_timeseries.csv,0"), "train_listfile.csv, line .* is there twice"),
        (lambda f, n, s: again(f, "val", f"{n}_timeseries.csv,0"), "_timeseries.csv is in two of its listfiles"),
        (lambda f, n, s: again(f, "test", "x_timeseries.csv,dead"), "label 'y_true' is dead; it must be 0 or 1"),
        (lambda f, n, s: again(f, "test", "x_timeseries.csv,"), "label 'y_true' is nan; it must be 0 or 1"),
        (lambda f, n, s: again(f, "test", ",1"), "test_listfile.csv, line .*: the stay is missing"),
        (lambda f, n, s: (f / "root" / "train" / s / "stays.csv").unlink(), "the start of stay 1 of subject"),
        (lambda f, n, s: (f / "notes" / f"{s}_1").write_text("no json"), "neither a JSON object"),
        (lambda f, n, s: (f / "notes" / f"{s}_1").write_text('{"soon": ["x"]}'), "'soon' is no time"),
    ],
)  # fmt: skip
def test_damaged_data_are_one_sentence(folder: Path, change, message: str) -> None:
    name, subject, _ = first(read_mimic3(folder))
    change(folder, name, subject)
    with pytest.raises(SeqattnError, match=message) as caught:
        read_mimic3(folder)
    assert "\n" not in str(caught.value)


def test_options_out_of_range(generated: Path, tmp_path: Path) -> None:
    with pytest.raises(SeqattnError, match="task is 'los'"):
        read_mimic3(generated, task="los")  # type: ignore[arg-type]
    with pytest.raises(SeqattnError, match="clock is 'wall'"):
        read_mimic3(generated, clock="wall")  # type: ignore[arg-type]
    with pytest.raises(SeqattnError, match="needs start_times"):
        read_mimic3(generated, clock="official")
    (tmp_path / "starts.pkl").touch()
    with pytest.raises(SeqattnError, match=r"neither .csv nor .json"):
        read_mimic3(generated, clock="official", start_times=tmp_path / "starts.pkl")
    with pytest.raises(SeqattnError, match="holds no mimic3"):
        read_mimic3(tmp_path)


def test_the_generator_repeats_itself(generated: Path, tmp_path: Path) -> None:
    write_synthetic_mimic(tmp_path / "again", stays=60, seed=3)
    files = sorted(path.relative_to(generated) for path in generated.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((generated / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
