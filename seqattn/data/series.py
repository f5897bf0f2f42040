"""Time series in memory, and the builder that the file readers share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqattn.errors import SeqattnError, nearest

MAX_CELLS = 2**29  # cases * length * channels; 2 GiB of float32
MAX_CHANNELS = 2**16
MAX_LABEL = 200


@dataclass(frozen=True, eq=False)
class SeriesSet:
    """Labelled series of one file, padded to the longest.

    values: (cases, length, channels) float32; 0 past a series' end, NaN where an observed step's value is missing.
    lengths: (cases,) int64, the steps of each series, at least 1.
    labels: (cases,) text, "" where the file has no labels.
    classes: label names in the header's order, else sorted; () where the file has no labels.
    """

    values: NDArray[np.float32]
    lengths: NDArray[np.int64]
    labels: NDArray[np.str_]
    classes: tuple[str, ...]

    @property
    def cases(self) -> int:
        return int(self.values.shape[0])

    @property
    def max_length(self) -> int:
        return int(self.values.shape[1])

    @property
    def channels(self) -> int:
        return int(self.values.shape[2])

    @property
    def equal_length(self) -> bool:
        return bool((self.lengths == self.max_length).all())

    def observed(self, channel: int) -> NDArray[np.float32]:
        """All values of one channel that are neither padding nor missing, in one dimension."""
        values = self.values[:, :, channel]
        inside = np.arange(self.max_length) < self.lengths[:, None]  # (cases, length)
        return values[inside & ~np.isnan(values)]

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> "SeriesSet":
        """The cases at `indices`, in that order, still padded to this set's longest series."""
        chosen = np.asarray(indices, dtype=np.int64)
        return SeriesSet(self.values[chosen], self.lengths[chosen], self.labels[chosen], self.classes)


def fault(path: Path, line: int, problem: str) -> SeqattnError:
    """The error for a malformed line, to be raised by the caller."""
    return SeqattnError(f"{path}, line {line}: {problem}")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without surrounding blanks) of every line that is not blank.

    Raises SeqattnError where the file cannot be opened, is empty, or is not UTF-8 text.
    """
    empty = True
    try:
        if not path.is_file():
            raise SeqattnError(f"{path} is not a file; check the path")
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                text = _decode(path, number, raw).strip()
                if text:
                    empty = False
                    yield number, text
    except OSError as error:
        raise SeqattnError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error
    if empty:
        raise SeqattnError(f"{path} is empty; a series file needs a header, @data and at least one case")


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise fault(path, number, f"byte 0x{byte:02x} is not UTF-8 text; save the file as UTF-8") from error
    if "\0" in text:
        raise fault(path, number, "a NUL byte; the file is damaged or not text")
    return text


class SeriesBuilder:
    """Collects the cases of one file, checks each against the first, and pads them into a SeriesSet.

    path: the file, named in every error.
    classes: the label names the header allows; () allows any.
    equal_length: the header promises that all channels of all cases have one length. Only then do trailing steps
        with no value in any channel count as missing values; otherwise they are padding and are cut off.
    """

    def __init__(self, path: Path, *, classes: Sequence[str] = (), equal_length: bool = False) -> None:
        self.path = path
        self.classes = tuple(dict.fromkeys(classes))
        self.equal_length = equal_length
        self._by_lower = {name.lower(): name for name in self.classes}
        self._cases: list[NDArray[np.float32]] = []
        self._labels: list[str] = []
        self._first_line = self._first_length = self._channels = self._longest = 0

    def add(self, line: int, channels: Sequence[str], label: str | None) -> None:
        """Append one case: comma-separated numbers per channel, and its label (None: the file has none).

        Channels shorter than the case's longest are filled with NaN. Raises SeqattnError naming file and line.
        """
        counts = [text.count(",") + 1 if text and not text.isspace() else 0 for text in channels]
        longest = max(counts)
        if longest == 0:
            raise fault(self.path, line, "the case has no values; write numbers separated by commas")
        if not self._cases:
            self._first_line, self._first_length, self._channels = line, longest, len(channels)
        self._check_shape(line, counts, longest)
        case = self._parse(line, channels, counts, longest)
        self._labels.append("" if label is None else self._check_label(line, label.strip()))
        self._cases.append(case if self.equal_length else _without_padding(case))

    def build(self) -> SeriesSet:
        """The SeriesSet of all cases added; raises SeqattnError when there are none."""
        if not self._cases:
            raise SeqattnError(f"{self.path} has no cases after @data; add at least one line of values")
        lengths = np.array([len(case) for case in self._cases], dtype=np.int64)
        values = np.zeros((len(self._cases), int(lengths.max()), self._channels), dtype=np.float32)
        for row, case in zip(values, self._cases, strict=True):
            row[: len(case)] = case
        classes = self.classes or tuple(sorted(set(self._labels) - {""}))
        return SeriesSet(values, lengths, np.array(self._labels, dtype=np.str_), classes)

    def _check_shape(self, line: int, counts: list[int], longest: int) -> None:
        first = f"the first case (line {self._first_line})"
        if len(counts) != self._channels:
            problem = f"{len(counts)} channels where {first} has {self._channels}; every case needs the same channels"
            raise fault(self.path, line, problem)
        if self.equal_length and not min(counts) == longest == self._first_length:
            odd = next(count for count in counts if count != self._first_length)
            problem = f"a channel of {odd} values where {first} has {self._first_length}"
            raise fault(self.path, line, f"{problem}; mend the line or write '@equalLength false' in the header")
        self._longest = max(self._longest, longest)
        if (len(self._cases) + 1) * self._longest * self._channels > MAX_CELLS:
            raise fault(self.path, line, f"the padded series exceed {MAX_CELLS} values; split or shorten them")

    def _parse(self, line: int, channels: Sequence[str], counts: list[int], longest: int) -> NDArray[np.float32]:
        try:
            numbers = _numbers(",".join(text for text, count in zip(channels, counts, strict=True) if count))
        except ValueError as error:
            raise fault(self.path, line, _first_bad_number(channels)) from error
        if min(counts) == longest:
            return numbers.reshape(len(channels), longest).T
        case = np.full((longest, len(channels)), np.nan, dtype=np.float32)
        ends = np.cumsum(counts)
        for channel, (count, end) in enumerate(zip(counts, ends, strict=True)):
            case[:count, channel] = numbers[end - count : end]
        return case

    def _check_label(self, line: int, label: str) -> str:
        if not label or len(label) > MAX_LABEL or not label.isprintable():
            raise fault(self.path, line, f"label {label[:40]!r} is not a short printable text; mend the line's end")
        if not self.classes or label in self.classes:
            return label
        if label.lower() in self._by_lower:  # the archive's loaders ignore case
            return self._by_lower[label.lower()]
        known = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        problem = f"label {label[:40]!r} is not among the header's classes ({known})"
        raise fault(self.path, line, problem + (nearest(label, self.classes) or "; mend the label or the header"))


def _numbers(text: str) -> NDArray[np.float32]:
    if "_" in text or not text.isascii():  # float() would read 1_0 and other scripts' digits
        raise ValueError("not a plain number")
    tokens = text.replace("?", "nan").split(",")
    with np.errstate(over="ignore"):
        numbers = np.fromiter(map(float, tokens), np.float64, len(tokens)).astype(np.float32)
    if np.isinf(numbers).any():
        raise ValueError("not finite in float32")
    return numbers


def _first_bad_number(channels: Sequence[str]) -> str:
    for channel, text in enumerate(channels, 1):
        for position, token in enumerate(text.split(",") if text.strip() else (), 1):
            try:
                _numbers(token)
            except ValueError:
                where = f"channel {channel}, value {position}"
                return f"{where} is {token.strip()[:40]!r}, not a finite number; write ? for a missing value"
    raise AssertionError("every value is a number")


def _without_padding(case: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isnan(case[-1]).all():
        return case
    observed = np.flatnonzero(~np.isnan(case).all(axis=1))
    return case[: observed[-1] + 1 if len(observed) else 1]
