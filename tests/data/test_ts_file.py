import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data import series as series_module
from seqattn.data.archive import find_split
from seqattn.data.series import SeriesSet
from seqattn.data.ts_file import read_ts
from seqattn.errors import SeqattnError

HEADER = "@problemName Toy\n@timeStamps false\n@univariate false\n@classLabel true up down\n@data\n"
TOY = HEADER + "1,2,3:4,5,6:up\n-1.5,2e-3,NaN:?,1,2:down\n"
READS = settings(max_examples=150, deadline=datetime.timedelta(seconds=5))

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: str | bytes) -> Path:
        path = tmp_path / "toy.ts"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def check_valid(series: SeriesSet) -> None:
    assert series.values.dtype == np.float32
    assert series.lengths.dtype == np.int64
    assert series.values.ndim == 3
    assert series.lengths.shape == series.labels.shape == (series.cases,)
    assert series.lengths.min() >= 1
    assert series.lengths.max() == series.max_length
    assert not np.isinf(series.values).any()
    past_end = np.arange(series.max_length) >= series.lengths[:, None]
    assert (series.values[past_end] == 0).all()
    assert set(series.labels.tolist()) <= {*series.classes, ""}


@pytest.mark.parametrize("name", ["BasicMotions", "JapaneseVowels", "GunPoint", "PLAID"])
def test_equals_sktime(name: str) -> None:
    from sktime.datasets import load_from_tsfile

    path = find_split(name, "TEST")
    frame, labels = load_from_tsfile(str(path), return_data_type="nested_univ")
    series = read_ts(path)
    check_valid(series)
    assert series.channels == frame.shape[1]
    assert [label.lower() for label in series.labels] == list(labels)  # sktime lowers them
    for case in range(series.cases):
        expected = np.stack([np.asarray(column) for column in frame.iloc[case]], axis=1)
        np.testing.assert_array_equal(series.values[case, : series.lengths[case]], expected.astype(np.float32))


def test_values_labels_and_missing(write: Write) -> None:
    series = read_ts(write(TOY))
    nan = np.nan
    expected = [[[1, 4], [2, 5], [3, 6]], [[-1.5, nan], [2e-3, 1], [nan, 2]]]
    np.testing.assert_array_equal(series.values, np.array(expected, np.float32))
    assert series.labels.tolist() == list(series.classes) == ["up", "down"]
    assert series.equal_length


def test_unequal_lengths_between_cases_and_channels(write: Write) -> None:
    series = read_ts(write(HEADER + "1,2,3:4:up\n5:6,7:down\n8::down\n"))
    nan = np.nan
    expected = [[[1, 4], [2, nan], [3, nan]], [[5, 6], [nan, 7], [0, 0]], [[8, nan], [0, 0], [0, 0]]]
    np.testing.assert_array_equal(series.values, np.array(expected, np.float32))
    assert series.lengths.tolist() == [3, 2, 1]
    assert not series.equal_length


def test_trailing_padding_is_cut_unless_lengths_are_equal(write: Write) -> None:
    cases = "1,?,NaN,?:2,3,nan,?:up\n?,?,?,?:?,?,?,?:down\n"
    unequal = read_ts(write(HEADER + cases))
    assert unequal.lengths.tolist() == [2, 1]
    assert unequal.max_length == 2
    equal = read_ts(write("@equalLength true\n" + HEADER + cases))
    assert equal.lengths.tolist() == [4, 4]
    assert np.isnan(equal.values[1]).all()


def test_crlf_blank_lines_comments_case_and_bom(write: Write) -> None:
    text = "\ufeff# note\n\na description without a hash\n@CLASSLABEL TRUE  up\tdown \n@Data\n\n# note\n 1 , 2 : UP \n"
    series = read_ts(write(text.replace("\n", "\r\n")))
    assert series.values[0, :, 0].tolist() == [1, 2]
    assert series.labels.tolist() == ["up"]
    assert series.classes == ("up", "down")


def test_without_labels(write: Write) -> None:
    series = read_ts(write("@classLabel false\n@data\n1,2:3,4\n"))
    assert (series.channels, series.labels.tolist(), series.classes) == (2, [""], ())


def test_classes_are_sorted_where_the_header_has_none(write: Write) -> None:
    assert read_ts(write("@classLabel true\n@data\n1:b\n2:a b\n3:b\n")).classes == ("a b", "b")


BAD_LINES = {
    "channels": (TOY + "1,2,3:up\n", 8, "1 channels where the first case (line 6) has 2"),
    "number": (TOY + "1,2,3:4,x,6:up\n", 8, "channel 2, value 2 is 'x'"),
    "empty value": (TOY + "1,,3:4,5,6:up\n", 8, "channel 1, value 2 is ''"),
    "underscore": (TOY + "1_0:4:up\n", 8, "'1_0'"),
    "other digits": (TOY + "1,\u0661:4,5:up\n", 8, "value 2"),
    "infinity": (TOY + "1,inf:4,5:up\n", 8, "'inf'"),
    "beyond float32": (TOY + "1,-1e39:4,5:up\n", 8, "'-1e39'"),
    "label": (TOY + "1:2:upp\n", 8, "did you mean up?"),
    "no label": (TOY + "1,2\n", 8, "':label'"),
    "empty label": (TOY + "1:2:\n", 8, "label ''"),
    "long label": ("@classLabel true\n@data\n1:" + "a" * 5000, 3, "label"),
    "no values": (TOY + ": :up\n", 8, "no values"),
    "length": ("@equalLength true\n" + TOY + "1,2:3,4:up\n", 9, "2 values where the first case (line 7) has 3"),
    "channel length": ("@equalLength true\n" + TOY + "1,2,3:3,4:up\n", 9, "2 values"),
    "time stamps": ("@timeStamps true\n" + TOY, 1, "time stamps"),
    "flag": ("@equalLength maybe\n" + TOY, 1, "true or false"),
    "regression": ("@targetlabel true\n@data\n1:2.5\n", 1, "regression"),
    "no classLabel": ("@problemName Toy\n@data\n1:up\n", 2, "@classLabel"),
    "data above @data": ("@classLabel false\n1,2,3\n@data\n", 2, "above the first case"),
    "header below @data": (TOY + "@classLabel false\n", 8, "move it above"),
    "many channels": ("@classLabel false\n@data\n1" + ":" * 70_000, 3, "65536 channels"),
    "not utf-8": (TOY.encode() + b"1:2:\xff\n", 8, "0xff"),
    "nul byte": (TOY + "1\0:2:up\n", 8, "NUL"),
}


@pytest.mark.parametrize(("content", "line", "problem"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_is_named(write: Write, content: str | bytes, line: int, problem: str) -> None:
    path = write(content)
    with pytest.raises(SeqattnError) as caught:
        read_ts(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [("", "is empty"), (" \n\n", "is empty"), (HEADER, "no cases"), ("just text\n1,2,3\n", "no @data")],
)
def test_bad_file_is_named(write: Write, content: str, problem: str) -> None:
    path = write(content)
    with pytest.raises(SeqattnError, match=problem) as caught:
        read_ts(path)
    assert str(path) in str(caught.value)


def test_missing_file_folder_and_device(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ts", tmp_path, Path("/dev/zero"), tmp_path / ("x" * 300)):
        with pytest.raises(SeqattnError, match="check the path"):
            read_ts(path)


def test_padding_cannot_exhaust_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "MAX_CELLS", 1000)
    with pytest.raises(SeqattnError, match="line 4: the padded series exceed 1000 values"):
        read_ts(write("@classLabel false\n@data\n" + "1," * 600 + "1\n1\n"))


def read_or_refuse(path: Path) -> None:
    try:
        series = read_ts(path)
    except SeqattnError:
        return
    check_valid(series)


@READS
@given(content=st.binary(max_size=400), headed=st.booleans())
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, headed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "random.ts"
    path.write_bytes((HEADER.encode() if headed else b"") + content)
    read_or_refuse(path)


@READS
@given(text=st.text(alphabet="0123456789.,:?-+eENnaif_ \n\r\t#@updown\u0661\x1c\u2028", max_size=200))
def test_random_cases(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "cases.ts"
    path.write_bytes((HEADER + text).encode())
    read_or_refuse(path)


@READS
@given(
    edits=st.lists(st.tuples(st.integers(0, len(TOY)), st.integers(0, 8), st.binary(max_size=6)), max_size=4),
    equal=st.booleans(),
)
def test_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, bytes]], equal: bool
) -> None:
    content = (f"@equalLength {equal}\n" + TOY).encode()
    for start, removed, inserted in edits:
        content = content[:start] + inserted + content[start + removed :]
    path = tmp_path_factory.getbasetemp() / "mutated.ts"
    path.write_bytes(content)
    read_or_refuse(path)
