import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data.arff_file import read_arff
from seqattn.errors import SeqattnError

UNIVARIATE = """% note
@relation Toy

@ATTRIBUTE att0 numeric
@attribute att1 REAL
@attribute att2 numeric
@attribute target {1, 'two words', "3"}
@DATA
% note
1,2.5,?,1
4,NaN,6,'two words'
"""
RELATIONAL = r"""@relation Toy
@attribute bag relational
  @attribute t0 numeric
  @attribute t1 numeric
@end bag
@attribute class {up,down}
@data
'1,2,3\n4,5,6',up
"7,?,?\n8,9,?",'down'
"""


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "toy.arff"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_univariate(tmp_path: Path) -> None:
    series = read_arff(write(tmp_path, UNIVARIATE))
    np.testing.assert_array_equal(series.values[:, :, 0], np.array([[1, 2.5, 0], [4, np.nan, 6]], np.float32))
    assert series.lengths.tolist() == [2, 3]
    assert series.labels.tolist() == ["1", "two words"]
    assert series.classes == ("1", "two words", "3")


def test_relational(tmp_path: Path) -> None:
    series = read_arff(write(tmp_path, RELATIONAL))
    nan = np.nan
    expected = [[[1, 4], [2, 5], [3, 6]], [[7, 8], [nan, 9], [0, 0]]]
    np.testing.assert_array_equal(series.values, np.array(expected, np.float32))
    assert series.lengths.tolist() == [3, 2]
    assert series.labels.tolist() == list(series.classes) == ["up", "down"]


def test_equals_sktime(tmp_path: Path) -> None:
    from sktime.datasets import load_from_arff_to_dataframe

    path = write(tmp_path, RELATIONAL.replace('"', "'").replace("'down'", "down"))
    frame, labels = load_from_arff_to_dataframe(str(path))
    series = read_arff(path)
    expected = np.stack([np.stack([np.asarray(cell) for cell in row], axis=1) for row in frame.to_numpy()])
    expected[1, 2] = 0  # padding of the second case
    np.testing.assert_array_equal(series.values, expected.astype(np.float32))
    assert series.labels.tolist() == labels.tolist()


def test_without_labels(tmp_path: Path) -> None:
    series = read_arff(write(tmp_path, "@relation r\n@attribute a numeric\n@attribute b numeric\n@data\n1,2\n"))
    assert (series.values[0, :, 0].tolist(), series.labels.tolist(), series.classes) == ([1, 2], [""], ())
    unlabelled = RELATIONAL.replace("@attribute class {up,down}\n", "").replace(",up", "").replace(",'down'", "")
    assert read_arff(write(tmp_path, unlabelled)).labels.tolist() == ["", ""]


BAD_LINES = {
    "number": (UNIVARIATE + "1,x,3,1\n", 12, "value 2 is 'x'"),
    "one field": (UNIVARIATE + "1\n", 12, "label"),
    "label": (UNIVARIATE + "1,2,3,4\n", 12, "'4' is not among"),
    "channels": (RELATIONAL + "'1,2,3',up\n", 10, "1 channels where the first case (line 8) has 2"),
    "no quotes": (RELATIONAL + "1,2,3,up\n", 10, "quotes"),
    "open quote": (RELATIONAL + "'1,2,3,up\n", 10, "quotes"),
    "no label": (RELATIONAL + r"'1,2\n3,4'" + "\n", 10, "label"),
    "class list": (UNIVARIATE.replace("}", ""), 7, "class list"),
    "not utf-8": (UNIVARIATE.encode() + b"\xff\n", 12, "0xff"),
}


@pytest.mark.parametrize(("content", "line", "problem"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_is_named(tmp_path: Path, content: str | bytes, line: int, problem: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(SeqattnError) as caught:
        read_arff(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"), [("", "is empty"), ("@relation r\n", "no @data"), ("@data\n", "no cases")]
)
def test_bad_file_is_named(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(SeqattnError, match=problem):
        read_arff(write(tmp_path, content))


@settings(max_examples=150, deadline=datetime.timedelta(seconds=5))
@given(
    edits=st.lists(st.tuples(st.integers(0, 220), st.integers(0, 8), st.binary(max_size=6)), max_size=4),
    base=st.sampled_from([UNIVARIATE, RELATIONAL, ""]),
)
def test_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, bytes]], base: str
) -> None:
    content = base.encode()
    for start, removed, inserted in edits:
        content = content[:start] + inserted + content[start + removed :]
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        series = read_arff(path)
    except SeqattnError:
        return
    assert series.lengths.min() >= 1
    assert not np.isinf(series.values).any()
