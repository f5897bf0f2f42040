"""Reader of the UEA/UCR archive's .ts format (https://www.timeseriesclassification.com)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seqattn.data.series import MAX_CHANNELS, SeriesBuilder, SeriesSet, fault, read_lines
from seqattn.errors import SeqattnError


@dataclass
class _Header:
    labelled: bool | None = None
    classes: tuple[str, ...] = ()
    equal_length: bool = False


def read_ts(path: str | Path) -> SeriesSet:
    """Read a .ts file: one case a line, channels separated by ':', values by ',', the label last.

    A missing value is '?' or 'NaN'. Channels shorter than their case's longest are filled with NaN. Unless the header
    says '@equalLength true', trailing steps where every channel is missing are padding: they do not count in
    `lengths` (a case without any value keeps one step). Header keys and labels are matched without regard to case;
    free text above the first '@' line and lines starting with '#' are ignored, and so are '@dimensions' and
    '@seriesLength', which the cases themselves decide.

    Raises SeqattnError, naming file and line, for: another number of channels than the first case; another length under
    '@equalLength true'; text that is not a finite float32; a label outside '@classLabel'; time stamps; a missing
    '@classLabel' or '@data'; no cases; bytes that are not UTF-8; series too large to pad.
    """
    path = Path(path)
    lines = read_lines(path)
    header = _read_header(path, lines)
    builder = SeriesBuilder(path, classes=header.classes, equal_length=header.equal_length)
    for number, line in lines:
        if line.startswith("#"):
            continue
        if line.startswith("@"):
            raise fault(path, number, f"header line {line[:40]!r} after @data; move it above @data")
        if line.count(":") > MAX_CHANNELS:
            raise fault(path, number, f"more than {MAX_CHANNELS} channels; check the separators")
        label: str | None = None
        if header.labelled:
            line, colon, label = line.rpartition(":")
            if not colon:
                raise fault(path, number, "no label: end the line with ':label' or write '@classLabel false'")
        builder.add(number, line.split(":"), label)
    return builder.build()


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> _Header:
    header = _Header()
    started = False
    for number, line in lines:
        if line.startswith("#") or not (started or line.startswith("@")):
            continue
        if not line.startswith("@"):
            raise fault(path, number, "text in the header; start it with '#', or put @data above the first case")
        started = True
        key, *words = line[1:].split() or [""]
        if key.lower() == "data":
            if header.labelled is None:
                problem = "@data before @classLabel; write '@classLabel true NAMES' or '@classLabel false' above it"
                raise fault(path, number, problem)
            return header
        _read_header_line(path, number, key.lower(), words, header)
    raise SeqattnError(f"{path} has no @data line; a .ts file needs header lines, @data, then one case a line")


def _read_header_line(path: Path, number: int, key: str, words: list[str], header: _Header) -> None:
    if key not in ("timestamps", "targetlabel", "equallength", "classlabel"):
        return
    flag = words[0].lower() if words else ""
    if flag not in ("true", "false"):
        raise fault(path, number, f"@{key} is {flag[:40]!r}; write true or false after it")
    if key == "equallength":
        header.equal_length = flag == "true"
    elif key == "classlabel":
        header.labelled, header.classes = flag == "true", tuple(words[1:])
    elif flag == "true" and key == "timestamps":
        raise fault(path, number, "time stamps are not supported; write the values alone and '@timeStamps false'")
    elif flag == "true":
        raise fault(path, number, "the labels are regression targets; choose a classification data set")
