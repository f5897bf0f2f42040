from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqattn.data.clinical.code_map import NOTES, UNMAPPED, read_code_map, write_code_map
from seqattn.data.clinical.in_memory import from_samples
from seqattn.data.clinical.meds import code_frequencies, is_meds, read_meds
from seqattn.data.clinical.meds_files import write_meds
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.schema import Variable
from seqattn.errors import SeqattnError

MAP = """
variables:
  Heart rate: {exact: [HR], prefix: [LAB//HR], unit: bpm, low: 0, high: 300}
  Temperature: {regex: ['TEMP.*'], factor: 0.1}
  Ventilated: {exact: VENT, presence: true}
  Eye: {exact: [EYE], categories: {to pain: 2, to speech: 3}}
  Sex: {exact: [SEX], categories: {F: 0, M: 1}}
notes: {exact: [NOTE]}
"""


@pytest.fixture
def code_map(tmp_path: Path) -> Path:
    path = tmp_path / "code_map.yaml"
    path.write_text(MAP)
    return path


def test_codes_find_their_variables(code_map: Path) -> None:
    mapping = read_code_map(code_map)
    codes = ["HR", "LAB//HR//bpm", "TEMP//C", "XTEMP", "VENT", "NOTE", "HR2", "EYE"]
    assert mapping.channels(codes).tolist() == [0, 0, 1, UNMAPPED, 2, NOTES, UNMAPPED, 3]
    assert mapping.variables[0] == Variable("Heart rate", low=0, high=300)
    assert mapping.variables[3].kind == "category"
    assert (mapping.factors[1], mapping.presence) == (0.1, (False, False, True, False, False))


def test_written_code_map_reads_back(tmp_path: Path) -> None:
    variables = {"a": Variable("HR", low=0, high=3, scale="log"), "b": Variable("E", "category", categories={"x": 1})}
    (tmp_path / "map.yaml").write_text(write_code_map(variables, "N"))
    mapping = read_code_map(tmp_path / "map.yaml")
    assert mapping.variables == tuple(variables.values())
    assert mapping.channels(["a", "b", "N"]).tolist() == [0, 1, NOTES]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variables: [", "cannot be read as YAML"),
        ("codes: {}", "no code map"),
        ("variables: {HR: {exakt: [a]}}", "must have one of exact"),
        ("variables: {HR: {exact: [a], hihg: 3}}", r"HR: unknown key 'hihg'; did you mean high\?"),
        ("variables: {HR: {regex: ['(']}}", r"'\(' is no regular expression"),
        ("variables: {HR: {exact: [a], factor: two}}", "factor is 'two'"),
        ("variables: {HR: {exact: [a], low: 3, high: 2}}", "low must be the smaller"),
        ("variables: {HR: {exact: [a]}}\nnote: {exact: [b]}", r"unknown key 'note'; did you mean notes\?"),
    ],
)
def test_wrong_code_maps_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(SeqattnError, match=message):
        read_code_map(tmp_path / "map.yaml")


def test_a_code_of_two_variables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("variables: {HR: {exact: [a]}, BP: {prefix: [a]}}")
    with pytest.raises(SeqattnError, match="gives the code 'a' to 'HR' and 'BP'"):
        read_code_map(tmp_path / "map.yaml").channels(["a"])


def test_variables_of_long_tables_are_listed_by_frequency(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("id,time,variable,value\na,1,HR,5\na,2,HR,x\na,2,BP,3\n")
    assert code_frequencies(tmp_path) == [("HR", 2, 1), ("BP", 1, 1)]
    with pytest.raises(SeqattnError, match="neither MEDS files"):
        code_frequencies(tmp_path / "none")


# what follows reads or writes parquet


def stays() -> Stays:
    """Three stays of two subjects, with notes, static values, splits and two labels, one of them not known for all."""
    samples = [
        {"id": "x", "subject": "7", "split": "train", "times": [0, 1.5], "values": [[80, np.nan], [81, 60]],
         "label": {"death": 1, "sepsis/shock": 0}, "notes": ["early", "late"], "note_times": [0.5, 2]},
        {"id": "y", "subject": "7", "split": "train", "times": [48], "values": [[np.nan, 61]],
         "label": {"death": 0, "sepsis/shock": 1}},
        {"id": "z", "subject": "9", "split": "test", "times": [3], "values": [[70, 50]], "label": {"death": 1}},
    ]  # fmt: skip
    found = from_samples(samples, ["HR", "BP"], window=48.0)
    variables = (Variable("HR", low=0, high=300), Variable("BP"))
    return replace(found, variables=variables)


@pytest.fixture
def meds(tmp_path: Path) -> Path:
    pytest.importorskip("pyarrow")
    folder = tmp_path / "meds"
    write_meds(stays(), folder)
    return folder


def test_written_stays_read_back(meds: Path) -> None:
    assert is_meds(meds)
    written, read = stays(), read_meds(meds)
    assert read.subjects.tolist() == ["7", "7", "9"]
    assert read.splits.tolist() == ["train", "train", "test"]
    assert read.variables == written.variables
    assert read.label_names == ("death", "sepsis_shock")
    np.testing.assert_array_equal(read.labels, written.labels)
    for name in ("starts", "times", "channel", "values"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert read.notes is not None
    assert (read.notes.texts, read.notes.times.tolist()) == (("early", "late"), [0.5, 2])
    assert len(set(read.ids)) == 3


def test_static_values_read_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    once = replace(
        stays().subset([0, 2]), static_variables=(Variable("Age"),), static=np.array([[50], [np.nan]], np.float32)
    )
    write_meds(once, tmp_path / "once")
    read = read_meds(tmp_path / "once")
    assert [variable.name for variable in read.static_variables] == ["Age"]
    np.testing.assert_array_equal(read.static, [[50], [np.nan]])


def test_files_are_those_of_the_standard(meds: Path) -> None:
    import pyarrow.parquet as parquet

    schema = parquet.read_schema(meds / "data" / "0.parquet")
    kinds = {name: str(schema.field(name).type) for name in schema.names}
    assert kinds == {
        "subject_id": "int64", "time": "timestamp[us]", "code": "string", "numeric_value": "float",
        "text_value": "large_string",
    }  # fmt: skip
    events = pd.read_parquet(meds / "data" / "0.parquet")
    assert events["subject_id"].is_monotonic_increasing
    assert events.groupby("subject_id")["time"].apply(lambda time: time.is_monotonic_increasing).all()
    files = sorted(str(path.relative_to(meds)) for path in meds.rglob("*") if path.is_file())
    assert files == [
        "code_map.yaml", "data/0.parquet", "labels/death.parquet", "labels/sepsis_shock.parquet",
        "metadata/codes.parquet", "metadata/dataset.json", "metadata/subject_splits.parquet",
    ]  # fmt: skip


def test_an_existing_folder_is_not_touched(meds: Path) -> None:
    before = sorted(meds.rglob("*"))
    with pytest.raises(SeqattnError, match="exists already"):
        write_meds(stays(), meds)
    assert sorted(meds.rglob("*")) == before


def write_raw(folder: Path, rows: list[tuple], labels: list[tuple] | None = None) -> Path:
    pytest.importorskip("pyarrow")
    (folder / "data" / "train").mkdir(parents=True)
    table = pd.DataFrame(rows, columns=["subject_id", "time", "code", "numeric_value", "text_value"])
    table["time"] = pd.to_datetime(table["time"])
    table.to_parquet(folder / "data" / "train" / "0.parquet")
    if labels:
        (folder / "labels" / "death").mkdir(parents=True)
        named = pd.DataFrame(labels, columns=["subject_id", "prediction_time", "boolean_value"])
        named["prediction_time"] = pd.to_datetime(named["prediction_time"])
        named.to_parquet(folder / "labels" / "death" / "0.parquet")
    return folder


RAW = [
    (1, None, "SEX", None, "M"),
    (1, "2020-01-01 00:00", "HR", 80.0, None),
    (1, "2020-01-01 06:00", "TEMPERATURE", 365.0, None),
    (1, "2020-01-01 12:00", "VENT", None, None),
    (1, "2020-01-01 12:00", "EYE", None, "to speech"),
    (1, "2020-01-01 12:00", "NOTE", None, "a note"),
    (1, "2020-01-01 12:00", "OTHER", 1.0, None),
    (1, "2020-01-01 12:01", "HR", 99.0, None),
    (2, "2020-05-01 00:00", "HR", 70.0, None),
]
LABEL = [(1, "2020-01-01 12:00", True), (1, "2020-01-01 06:00", False), (2, "2020-05-02 00:00", False)]


def test_windows_end_at_the_prediction_time(tmp_path: Path, code_map: Path) -> None:
    read = read_meds(write_raw(tmp_path / "raw", RAW, LABEL), window=6.0, code_map=code_map)
    assert [variable.name for variable in read.variables] == ["Heart rate", "Temperature", "Ventilated", "Eye"]
    assert read.labels[:, 0].tolist() == [0, 1, 0]
    assert read.stay(0).times.tolist() == [0, 6]
    np.testing.assert_allclose(read.stay(0).values, [[80, 0, 0, 0], [0, 36.5, 0, 0]], rtol=1e-6)
    assert read.stay(1).times.tolist() == [0, 6]
    np.testing.assert_allclose(read.stay(1).values, [[0, 36.5, 0, 0], [0, 0, 1, 3]], rtol=1e-6)
    assert read.stay(1).note_texts == ("a note",)
    assert read.lengths.tolist() == [2, 2, 0]
    np.testing.assert_array_equal(read.static, [[1], [1], [np.nan]])
    assert read.counts["events of codes that the code map lacks left out"] == 1


def test_prediction_without_labels_ends_at_the_last_event(tmp_path: Path, code_map: Path) -> None:
    read = read_meds(write_raw(tmp_path / "raw", RAW), window=1.0, code_map=code_map, labelled=False)
    assert read.lengths.tolist() == [2, 1]
    assert read.stay(0).times[-1] == 1
    with pytest.raises(SeqattnError, match="holds no label files"):
        read_meds(tmp_path / "raw", code_map=code_map)


def test_without_code_map_codes_with_numbers_are_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_raw(tmp_path / "raw", RAW, LABEL)
    read = read_meds(folder)
    assert [variable.name for variable in read.variables] == ["HR", "OTHER", "TEMPERATURE"]
    assert code_frequencies(folder)[0] == ("HR", 3, 3)
    assert ("SEX", 1, 0) in code_frequencies(folder)
    monkeypatch.setattr("seqattn.data.clinical.meds.MOST_CODES", 2)
    with pytest.raises(SeqattnError, match=r"3 codes with numbers, too many.*seqattn ehr-codes"):
        read_meds(folder)


def test_damaged_folders_are_one_sentence(tmp_path: Path, code_map: Path) -> None:
    folder = write_raw(tmp_path / "raw", [*RAW, (2, "2020-05-01 00:00", "EYE", None, "to spech")], LABEL)
    with pytest.raises(SeqattnError, match=r"unknown category 'to spech'.*mean to speech"):
        read_meds(folder, code_map=code_map)
    twice = write_raw(tmp_path / "twice", RAW, [*LABEL, LABEL[0]])
    with pytest.raises(SeqattnError, match="labels subject 1 at 2020-01-01 12:00:00 twice"):
        read_meds(twice)
    (twice / "labels" / "death" / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(SeqattnError, match="cannot be read as parquet"):
        read_meds(twice)


def change(folder: Path, file: str, edit: Callable[[pd.DataFrame], object]) -> None:
    """Write one of the folder's files anew after `edit` has changed its table."""
    table = pd.read_parquet(folder / file)
    changed = edit(table)
    (table if changed is None else changed).to_parquet(folder / file)


def put(column: str, row: int, value: object) -> Callable[[pd.DataFrame], object]:
    """Put a value, of whatever type, into a column."""

    def edit(table: pd.DataFrame) -> pd.DataFrame:
        given = table[column].astype(object)
        given.iloc[row] = value
        return table.assign(**{column: given.astype(str).where(given.notna()) if isinstance(value, str) else given})

    return edit


DATA, DEATH, SPLITS = "data/0.parquet", "labels/death.parquet", "metadata/subject_splits.parquet"


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (DATA, put("code", 3, None), r"0.parquet, row 4: the code is missing; give one"),
        (DATA, put("subject_id", 1, None), r"0.parquet, row 2: the subject_id is missing"),
        (DATA, put("subject_id", 1, "p7"), r"0.parquet, row 2: subject_id is 'p7', not a whole number"),
        (DATA, put("subject_id", 1, 7.5), r"0.parquet, row 2: subject_id is '7.5', not a whole number"),
        (DATA, put("time", 3, "yesterday"), r"0.parquet, row 4: time is 'yesterday', no time such as"),
        (DATA, lambda table: table.assign(time=5), r"0.parquet, row 1: time is '5', no time such as"),
        (DATA, put("numeric_value", 2, "abc"), r"0.parquet, row 3: numeric_value is 'abc', not a number"),
        (DEATH, put("prediction_time", 2, None), r"death.parquet, row 3: the prediction_time is missing"),
        (DEATH, put("subject_id", 0, None), r"death.parquet, row 1: the subject_id is missing"),
        (DEATH, put("subject_id", 0, 9001), r"1: 1 rows are of subjects without an event in data/, the first is 9001"),
        (DEATH, put("boolean_value", 0, "yes"), r"death.parquet, row 1: label 'boolean_value' is yes; it must"),
        (DEATH, put("boolean_value", 0, None), r"death.parquet, row 1: label 'boolean_value' is None; it must"),
        (SPLITS, put("subject_id", 0, 77), r"subject_splits.parquet, row 1: 1 rows are of subjects without .* is 77"),
        (SPLITS, put("subject_id", 0, None), r"subject_splits.parquet, row 1: the subject_id is missing"),
        (SPLITS, put("subject_id", 0, 9), r"subject_splits.parquet, row 2: subject 9 is there twice"),
        (SPLITS, put("split", 1, "tets"), r"subject_splits.parquet, row 2: split is 'tets'; it must be train"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(
    meds: Path, file: str, edit: Callable[[pd.DataFrame], object], message: str
) -> None:
    change(meds, file, edit)
    with pytest.raises(SeqattnError, match=message) as caught:
        read_meds(meds)
    assert "\n" not in str(caught.value)


def test_timestamps_may_be_text(meds: Path) -> None:
    before = read_meds(meds)
    change(meds, DATA, lambda table: table.assign(time=table["time"].astype(str).where(table["time"].notna())))
    np.testing.assert_array_equal(read_meds(meds).times, before.times)


def test_what_is_left_out_is_counted(tmp_path: Path, code_map: Path) -> None:
    rows = [
        *RAW,
        (1, None, "HR", 60.0, None),  # a heart rate without a time, a variable that has times
        (1, None, "SEX", None, "F"),  # a second sex
        (2, None, "SEX", None, None),
        (1, None, "NOTE", None, "without a time"),
        (1, "2020-01-01 11:00", "NOTE", None, None),
        (1, "2020-01-01 11:00", "NOTE", None, "  "),
        (1, "2020-01-03 11:00", "NOTE", None, "late"),
        (1, "2019-01-03 11:00", "HR", 50.0, None),
        (3, "2020-01-01 11:00", "HR", 50.0, None),
    ]
    read = read_meds(write_raw(tmp_path / "raw", rows, LABEL), window=6.0, code_map=code_map)
    assert read.counts == {
        "events of codes that the code map lacks left out": 1,
        "notes without text left out": 2,
        "events and notes of subjects without a label left out": 1,
        "events outside the window left out": 3,  # of subject 1 in 2019 and at 12:01, of subject 2 a day before
        "notes outside the window left out": 1,
        "notes without a time left out": 1,
        "events without a time, of variables that have one elsewhere, left out": 1,
        "static values missing or infinite left out": 1,
        "static values repeated: last kept": 1,
    }
    assert read.notes is not None
    assert read.notes.texts == ("a note",)
    np.testing.assert_array_equal(read.static, [[0], [0], [np.nan]])


def test_every_event_is_read_or_counted(tmp_path: Path, code_map: Path) -> None:
    random = np.random.default_rng(0)
    hours = random.integers(0, 200, 300)
    rows: list[tuple] = [
        (int(subject), f"2020-01-{1 + hour // 24:02d} {hour % 24:02d}:00", "HR", float(place), None)
        for place, (subject, hour) in enumerate(zip(random.integers(1, 4, 300), hours, strict=True))
    ]
    labels = [(1, "2020-01-04 00:00", True), (2, "2020-01-06 00:00", False)]
    read = read_meds(write_raw(tmp_path / "raw", rows, labels), code_map=code_map)
    assert len(read.times) + sum(read.counts.values()) - read.counts.get("events out of order sorted", 0) == 300


def test_labels_need_no_values_for_prediction(meds: Path) -> None:
    whole = read_meds(meds, labelled=False)
    for name in ("death", "sepsis_shock"):
        change(meds, f"labels/{name}.parquet", lambda table: table[["subject_id", "prediction_time"]])
    read = read_meds(meds, labelled=False)
    assert (read.ids.tolist(), read.label_names) == (whole.ids.tolist(), ())
    with pytest.raises(SeqattnError, match=r"death.parquet has no label in boolean_value"):
        read_meds(meds)


def test_prediction_counts_subjects_without_a_time(tmp_path: Path, code_map: Path) -> None:
    rows = [*RAW, (3, None, "SEX", None, "F"), (4, "2020-01-01 00:00", "UNKNOWN", 1.0, None)]
    folder = write_raw(tmp_path / "raw", rows)
    read = read_meds(folder, code_map=code_map, labelled=False)
    assert read.subjects.tolist() == ["1", "2"]
    assert read.counts["subjects without an event that has a time left out"] == 2
    (tmp_path / "other.yaml").write_text("variables: {X: {exact: [X]}}")
    with pytest.raises(SeqattnError, match="no event with a time of a variable or note; check its code map"):
        read_meds(folder, code_map=tmp_path / "other.yaml", labelled=False)


def test_a_subject_without_anything_is_written_and_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    samples = [
        {"id": "7", "times": [1], "values": [[80.0]], "label": {"death": 1}},
        {"id": "07", "times": [], "values": np.empty((0, 1)), "label": {"death": 0}},
    ]
    write_meds(from_samples(samples, ["HR"], window=48.0), tmp_path / "meds")
    read = read_meds(tmp_path / "meds")
    assert sorted(zip(read.lengths.tolist(), read.labels[:, 0].tolist(), strict=True)) == [(0, 0), (1, 1)]
    assert len(set(read.subjects)) == 2


def test_a_label_is_one_file_or_folder(meds: Path) -> None:
    (meds / "labels" / "death").mkdir()
    with pytest.raises(SeqattnError, match=r"has both a folder death and death.parquet; remove one"):
        read_meds(meds)
    (meds / "labels" / "death.parquet").unlink()
    with pytest.raises(SeqattnError, match=r"death holds no label file \*.parquet"):
        read_meds(meds)
