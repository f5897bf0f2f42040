"""Reader of the UEA/UCR archive's ARFF files, univariate and multivariate (relational)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seqattn.data.series import MAX_CHANNELS, SeriesBuilder, SeriesSet, fault, read_lines
from seqattn.errors import SeqattnError

_CLASS_NAME = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|([^,]+))""")


@dataclass
class _Header:
    relational: bool = False
    classes: tuple[str, ...] | None = None


def read_arff(path: str | Path) -> SeriesSet:
    r"""Read an ARFF file of the archive.

    Univariate: a row is comma-separated values. Multivariate: an attribute of type `relational`, a row is the
    quoted channels separated by a literal '\n'. A last attribute of nominal type is the label. '?' and 'NaN' are
    missing; trailing steps where every channel is missing are padding and do not count in `lengths`.

    Raises SeqattnError, naming file and line, for every malformed row, and for a file without @data or rows.
    """
    path = Path(path)
    lines = read_lines(path)
    header = _read_header(path, lines)
    builder = SeriesBuilder(path, classes=header.classes or ())
    for number, line in lines:
        if line.startswith("%"):
            continue
        split = _split_relational if header.relational else _split_univariate
        channels, label = split(path, number, line, header.classes is not None)
        builder.add(number, channels, label)
    return builder.build()


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> _Header:
    header = _Header()
    for number, line in lines:
        key = line.split()[0].lower()
        if key == "@data":
            return header
        if key == "@attribute":
            header.relational |= line.lower().endswith("relational")
            header.classes = _class_names(path, number, line) if "{" in line else None
    raise SeqattnError(f"{path} has no @data line; an ARFF file needs @attribute lines, @data, then one case a line")


def _class_names(path: Path, number: int, line: str) -> tuple[str, ...]:
    inside, closed, _ = line.partition("{")[2].rpartition("}")
    names = tuple("".join(groups).strip() for groups in _CLASS_NAME.findall(inside) if "".join(groups).strip())
    if not closed or not names:
        raise fault(path, number, "the class list is not '{name, name, ...}'; mend the @attribute line")
    return names


def _split_relational(path: Path, number: int, line: str, labelled: bool) -> tuple[list[str], str | None]:
    quote = line[0]
    end = line.find(quote, 1)
    if quote not in "'\"" or end < 0:
        raise fault(path, number, "the channels are not between quotes; a relational case is 'values\\nvalues',label")
    if line.count("\\n", 0, end) > MAX_CHANNELS:
        raise fault(path, number, f"more than {MAX_CHANNELS} channels; check the separators")
    rest = line[end + 1 :].strip()
    if rest.startswith(",") != labelled or (rest and not labelled):
        raise fault(path, number, "the text after the quotes does not fit the header; write ',label' if it has classes")
    return line[1:end].split("\\n"), _unquote(rest[1:]) if labelled else None


def _split_univariate(path: Path, number: int, line: str, labelled: bool) -> tuple[list[str], str | None]:
    if not labelled:
        return [line], None
    values, comma, label = line.rpartition(",")
    if not comma:
        raise fault(path, number, "one field where values and a label are needed; write 'value,value,...,label'")
    return [values], _unquote(label)


def _unquote(label: str) -> str:
    return label.strip().strip("'\"").strip()
