from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqattn.data.clinical.long_tables import read_long_tables
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.schema import Schema, Variable
from seqattn.errors import SeqattnError

EVENTS = "id,time,variable,value\nb,2,HR,80\nb,1,HR,70\na,0.5,BP,120\nb,1,BP,99\n"
LABELS = "id,death\na,1\nb,0\nc,0\n"
UNNAMED = "labels of stays that no other table names kept as stays without events"


def write(folder: Path, **tables: str) -> Path:
    for name, text in {"events": EVENTS, "labels": LABELS, **tables}.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def error(folder: Path, **tables: str) -> str:
    with pytest.raises(SeqattnError) as caught:
        read_long_tables(write(folder, **tables))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_id(stays: Stays, name: str):
    return stays.stay(stays.ids.tolist().index(name))


def test_events_and_labels(tmp_path: Path) -> None:
    stays = read_long_tables(write(tmp_path))
    assert stays.ids.tolist() == stays.subjects.tolist() == ["a", "b", "c"]
    assert [variable.name for variable in stays.variables] == ["BP", "HR"]
    assert by_id(stays, "b").times.tolist() == [1, 2]
    assert by_id(stays, "b").values.tolist() == [[99, 70], [0, 80]]
    assert stays.lengths.tolist() == [1, 2, 0]
    assert (stays.label_names, stays.labels.tolist()) == (("death",), [[1], [0], [0]])
    assert (stays.window, set(stays.splits)) == (48, {""})
    assert stays.counts == {UNNAMED: 1, "events out of order sorted": 1}


def test_timestamps_with_starts(tmp_path: Path) -> None:
    events = "id,time,variable,value\na,2024-01-01 12:30:00,HR,1\na,2024-01-03T13:00,HR,2\nb,2024-05-01 00:00:00,HR,3\n"
    anchors = "id,start\na,2024-01-01 12:00:00\nb,2024-04-30 23:00\nc,2024-01-01\n"
    stays = read_long_tables(write(tmp_path, events=events, anchors=anchors))
    assert by_id(stays, "a").times.tolist() == [0.5]
    assert by_id(stays, "b").times.tolist() == [1]
    assert stays.counts == {"events outside the window left out": 1}


def test_time_zones_are_taken_into_account(tmp_path: Path) -> None:
    events = "id,time,variable,value\na,2024-01-01T12:30:00+02:00,HR,1\nb,2024-01-01T11:00Z,HR,3\n"
    anchors = "id,start\na,2024-01-01T10:00:00Z\nb,2024-01-01T12:00:00+02:00\nc,2024-01-01\n"
    stays = read_long_tables(write(tmp_path, events=events, anchors=anchors))
    assert (by_id(stays, "a").times.tolist(), by_id(stays, "b").times.tolist()) == ([0.5], [1])


def test_window_end_moves_the_window(tmp_path: Path) -> None:
    labels = "id,death,window_end\na,1,10\nb,0,2\nc,0,5\n"
    stays = read_long_tables(write(tmp_path, labels=labels), window=1)
    assert stays.lengths.tolist() == [0, 2, 0]
    assert by_id(stays, "b").times.tolist() == [0, 1]


def test_window_end_as_timestamp(tmp_path: Path) -> None:
    events = "id,time,variable,value\na,2024-01-01 12:30:00,HR,1\nb,2024-01-01 12:30,HR,2\n"
    anchors = "id,start\na,2024-01-01\nb,2024-01-01\nc,2024-01-01\n"
    labels = "id,death,window_end\na,1,2024-01-01 13:00\nb,0,2024-01-02 13:00\nc,0,2024-01-01 01:00\n"
    stays = read_long_tables(write(tmp_path, events=events, anchors=anchors, labels=labels), window=2)
    assert by_id(stays, "a").times.tolist() == [1.5]
    assert len(by_id(stays, "b").times) == 0


def test_schema_gives_ranges_categories_and_the_window(tmp_path: Path) -> None:
    variables = (Variable("HR", low=0, high=300), Variable("eye", "category", categories={"to pain": 2}))
    (tmp_path / "schema.json").write_text(Schema(variables, 24.0, 24).to_json())
    events = "id,time,variable,value\na,1,eye,To Pain\na,2,eye,3\na,3,HR,80\na,30,HR,90\nb,1,BP,70\n"
    stays = read_long_tables(write(tmp_path, events=events))
    assert stays.window == 24
    assert [variable.name for variable in stays.variables] == ["BP", "HR", "eye"]
    assert stays.variables[1:] == variables
    assert by_id(stays, "a").values[:, 2].tolist() == [2, 3, 0]


def test_static_values_subjects_and_splits(tmp_path: Path) -> None:
    static = "id,subject,age,sex\na,p,50,F\nb,p,,M\nc,q,70,\n"
    stays = read_long_tables(write(tmp_path, static=static, splits="subject,split\np,train\nq,held_out\n"))
    assert [variable.name for variable in stays.static_variables] == ["age", "sex=F", "sex=M"]
    np.testing.assert_array_equal(stays.static, [[50, 1, np.nan], [np.nan, np.nan, 1], [70, np.nan, np.nan]])
    assert stays.subjects.tolist() == ["p", "p", "q"]
    assert stays.splits.tolist() == ["train", "train", "test"]
    labels = "id,death,split\na,1,train\nb,0,val\nc,0,test\n"
    (tmp_path / "splits.csv").unlink()
    assert read_long_tables(write(tmp_path, labels=labels)).splits.tolist() == ["train", "valid", "test"]


def test_notes_are_sorted_and_those_outside_the_window_left_out(tmp_path: Path) -> None:
    notes = 'id,time,text\nb,5,"later, much"\nb,-2,before\nb,49,too late\nb,-30,too early\na,1,\n'
    stays = read_long_tables(write(tmp_path, notes=notes))
    assert by_id(stays, "b").note_texts == ("before", "later, much")
    assert by_id(stays, "b").note_times.tolist() == [-2, 5]
    assert stays.counts["notes without text or outside the window left out"] == 3


def test_without_labels_for_prediction(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "labels.csv").unlink()
    stays = read_long_tables(tmp_path, labelled=False)
    assert (stays.ids.tolist(), stays.labels.shape) == (["a", "b"], (2, 0))


def test_missing_values_are_counted_and_numbers_may_be_ids(tmp_path: Path) -> None:
    events = "id,time,variable,value\n7,1,HR,\n7,2,HR,inf\n7,3,HR,5\n07,3,HR,6\n"
    stays = read_long_tables(write(tmp_path, events=events, labels="id,death\n7,1\n07,0\n"))
    assert stays.ids.tolist() == ["07", "7"]
    assert by_id(stays, "7").values.tolist() == [[5]]
    assert stays.counts["events with a missing or infinite value left out"] == 2


def test_parquet_reads_as_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    written = read_long_tables(write(tmp_path, notes="id,time,text\nb,5,stable\n"))
    for name in ("events", "labels", "notes"):
        pd.read_csv(tmp_path / f"{name}.csv").to_parquet(tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.csv").unlink()
    stays = read_long_tables(tmp_path)
    for name in ("ids", "times", "values", "labels"):
        np.testing.assert_array_equal(getattr(stays, name), getattr(written, name))
    (tmp_path / "events.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(SeqattnError, match="cannot be read as parquet"):
        read_long_tables(tmp_path)


def test_parquet_timestamps_read_as_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    anchors = "id,start\na,2024-01-01\nb,2024-01-01\nc,2024-01-01\n"
    times = pd.to_datetime(["2024-01-01 06:00", "2024-01-02 00:00"])
    write(tmp_path, anchors=anchors)
    (tmp_path / "events.csv").unlink()
    for zone in (None, "UTC"):
        table = pd.DataFrame({"id": ["a", "b"], "time": times.tz_localize(zone), "variable": "HR", "value": [1.0, 2.0]})
        table.to_parquet(tmp_path / "events.parquet")
        assert read_long_tables(tmp_path).times.tolist() == [6, 24]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"events": EVENTS.replace("value", "vaule")}, "no column 'value' (it has id, time, variable, vaule); did you"),
        ({"events": EVENTS.replace("120", "high")}, "line 4: value is 'high', not a number"),
        ({"events": EVENTS.replace("2,HR", "2024-01-01,HR")}, "line 3: time is '1' but '2024-01-01' in the first row"),
        ({"events": EVENTS.replace("2,HR", ",HR")}, "line 2: the time is missing"),
        ({"events": EVENTS.replace("b,2", ",2")}, "line 2: the id is missing"),
        ({"events": "id,time,variable,value\n"}, "events.csv has no rows"),
        ({"events": ""}, "events.csv is empty"),
        ({"events": EVENTS.replace("value\n", "value,unity\n")}, "an unknown column 'unity'"),
        ({"events": EVENTS.replace("b,", "d,")}, "1 stays of the table events have no row"),
        ({"labels": LABELS.replace("a,1", "a,yes")}, "line 2: label 'death' is yes; it must be 0 or 1"),
        ({"labels": LABELS.replace("a,1", "a,2")}, "line 2: label 'death' is 2; it must be 0 or 1"),
        ({"labels": LABELS.replace("a,1", "a,")}, "label 'death' is nan"),
        ({"labels": LABELS + "a,0\n"}, "line 5: stay a is there twice"),
        ({"static": "id,age\na,1\nb,2\nc,3\na,4\n"}, "static.csv, line 5: stay a is there twice"),
        ({"anchors": "id,start\na,2024-01-01\nb,2024-01-01\nb,2024-01-02\n"}, "anchors.csv, line 4: stay b is there"),
        ({"splits": "id,split\na,train\nb,test\na,test\n"}, "line 2: id a is in train here and in test in a later row"),
        ({"labels": "id,death,split\na,1,train\nb,0,train\nc,0,test\n", "splits": "id,split\na,test\n"},
         "has a column 'split' and there is"),
        ({"events": "id,time,variable,value\na,03:30,HR,8\nb,12:00,HR,8\n"},
         "line 2: time is '03:30', which has no date; give hours such as 17.75, or timestamps"),
        ({"labels": "id\na\nb\n"}, "no column with a label"),
        ({"labels": "id,death,split\na,1,tran\nb,0,train\nc,0,test\n"}, "line 2: split is 'tran'; did you mean train"),
        ({"static": "id,age\na,1\nb,2\n"}, "1 labels of"),
        ({"splits": "id,split\na,train\nx,test\n"}, "name no id of the data, the first is x"),
        ({"splits": "subject,split\nx,test\n"}, "name no subject of the data, the first is x"),
        ({"splits": "ids,split\nx,test\n"}, "an unknown column 'ids'; did you mean id?"),
        ({"notes": "id,time,text\nd,1,hello\n"}, "1 stays of the table notes have no row"),
        ({"events": "id,time,variable,value,subject\na,1,HR,70,p\na,2,HR,70,q\n"}, "the stay has another subject"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_sentence(tmp_path: Path, tables: dict[str, str], message: str) -> None:
    assert message in error(tmp_path, **tables)


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan", "N/A"])
def test_names_that_look_missing_are_names(tmp_path: Path, name: str) -> None:
    """Ids, variables, categories and notes may be called as pandas writes a gap."""
    (tmp_path / "schema.json").write_text(
        Schema((Variable("eye", "category", categories={"None": 1, "open": 4}),), 48.0, 48).to_json()
    )
    events = f"id,time,variable,value\n{name},1,{name},5\nb,2,eye,None\nb,3,eye,open\nb,4,eye,nan\nb,5,eye,\n"
    notes = f"id,time,text\nb,1,{name}\nb,2,\nb,3,  \n"
    static = f"id,insurance,age\n{name},None,NA\nb,private,50\n"
    stays = read_long_tables(
        write(tmp_path, events=events, notes=notes, static=static, labels=f"id,death\n{name},1\nb,0\n")
    )
    assert set(stays.ids) == {"b", name}
    assert {variable.name for variable in stays.variables} == {name, "eye"}
    eye = [variable.name for variable in stays.variables].index("eye")
    assert by_id(stays, "b").values[:, eye].tolist() == [1, 4]
    assert by_id(stays, "b").note_texts == (name,)
    assert [variable.name for variable in stays.static_variables] == ["insurance=None", "insurance=private", "age"]
    assert np.nan_to_num(by_id(stays, name).static, nan=-1).tolist() == [1, -1, -1]
    assert stays.counts == {
        "events with a missing or infinite value left out": 2,
        "notes without text or outside the window left out": 2,
    }


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "NA", "None"])
def test_numbers_may_be_missing(tmp_path: Path, missing: str) -> None:
    events = f"id,time,variable,value\na,1,HR,5\na,2,HR,{missing}\nb,2,HR,6\nc,3,HR,7\n"
    stays = read_long_tables(write(tmp_path, events=events))
    assert stays.values.tolist() == [5, 6, 7]
    assert stays.counts == {"events with a missing or infinite value left out": 1}


def test_a_split_given_twice_alike_is_one(tmp_path: Path) -> None:
    stays = read_long_tables(write(tmp_path, splits="id,split\na,train\nb,test\na,training\n"))
    assert stays.splits.tolist() == ["train", "test", ""]


def test_a_label_of_no_stay(tmp_path: Path) -> None:
    """An error where a table names every stay; else it is all that is known of a stay, and counted."""
    static = "id,age\na,1\nb,2\n"
    assert "1 labels of" in error(tmp_path, static=static)
    stays = read_long_tables(write(tmp_path, static=static + "c,3\n"))
    assert (stays.lengths.tolist(), stays.counts) == ([1, 2, 0], {"events out of order sorted": 1})
    (tmp_path / "static.csv").unlink()
    assert read_long_tables(tmp_path).counts[UNNAMED] == 1


def test_two_files_of_one_table(tmp_path: Path) -> None:
    (write(tmp_path) / "events.parquet").touch()
    assert "has both events.parquet and events.csv; remove the one" in error(tmp_path)


def test_durations_in_parquet_are_hours(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path)
    (tmp_path / "events.csv").unlink()
    time = pd.to_timedelta([1.5, 30], unit="h")
    pd.DataFrame({"id": ["a", "b"], "time": time, "variable": "HR", "value": 1.0}).to_parquet(
        tmp_path / "events.parquet"
    )
    assert read_long_tables(tmp_path).times.tolist() == [1.5, 30]


def test_timestamps_need_starts(tmp_path: Path) -> None:
    events = EVENTS.replace(",2,", ",2024-01-01,").replace(",1,", ",2024-01-02,").replace(",0.5,", ",2024-01-03,")
    assert "add a table anchors" in error(tmp_path, events=events)
    assert "stay a of" in error(tmp_path, events=events, anchors="id,start\nb,2024-01-01\nc,2024-01-01\n")
    assert "start must be a timestamp" in error(tmp_path, events=events, anchors="id,start\nb,5\nc,6\n")
    damaged = events.replace("2024-01-03", "03.01.2024")
    anchors = "id,start\na,2024-01-01\nb,2024-01-01\nc,2024-01-01\n"
    assert "'03.01.2024', no time such as" in error(tmp_path, events=damaged, anchors=anchors)


def test_unknown_category_names_the_row(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(
        Schema((Variable("eye", "category", categories={"to pain": 2, "to speech": 3}),), 48.0, 48).to_json()
    )
    text = error(tmp_path, events="id,time,variable,value\na,1,eye,to pain\na,2,eye,to spech\n")
    assert "line 3: variable 'eye': unknown category 'to spech'" in text
    assert "did you mean to speech" in text
    text = error(tmp_path, events="id,time,variable,value\na,1,eye,to pain\na,2,HR,fast\n")
    assert "line 3: value is 'fast', not a number, and variable 'HR' has no categories" in text


def test_missing_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "event.csv").write_text(EVENTS)
    with pytest.raises(SeqattnError, match=r"no table events.parquet or events.csv; did you mean event\?"):
        read_long_tables(tmp_path)
    (tmp_path / "event.csv").rename(tmp_path / "events.csv")
    with pytest.raises(SeqattnError, match=r"no table labels.parquet or labels.csv"):
        read_long_tables(tmp_path)
