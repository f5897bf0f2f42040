"""Which variables a model takes and how each is clipped and scaled: JSON that training writes, prediction reads."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqattn.errors import SeqattnError, nearest

VERSION = 1  # of the file's format
_KINDS = ("real", "category")
_SCALES = ("linear", "log")


@dataclass(frozen=True)
class Variable:
    """One variable of a record.

    kind: "category" has `categories`, the number of each text; the numbers are scaled like any other.
    low, high: the range values are clipped to, in the variable's unit; None leaves that side open.
    scale: "log" takes ln(1 + value) after clipping; it needs low >= 0.
    mean, std: of the scaled training values; None until they are fitted.
    """

    name: str
    kind: Literal["real", "category"] = "real"
    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    categories: Mapping[str, float] = field(default_factory=dict)
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        name = f"variable {self.name!r}"
        if self.kind not in _KINDS:
            raise SeqattnError(f"{name}: kind is {self.kind!r}; it must be 'real' or 'category'")
        if self.scale not in _SCALES:
            raise SeqattnError(f"{name}: scale is {self.scale!r}; it must be 'linear' or 'log'")
        for key in ("low", "high", "mean", "std"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise SeqattnError(f"{name}: {key} is {value!r}; it must be a finite number or null")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise SeqattnError(f"{name}: low is {self.low} and high {self.high}; low must be the smaller")
        if self.scale == "log" and (self.low is None or self.low < 0):
            raise SeqattnError(f"{name}: scale 'log' needs a low of at least 0, it is {self.low}; give one")
        if self.std is not None and self.std <= 0:
            raise SeqattnError(f"{name}: std is {self.std}; it must be positive")

    def number(self, text: str) -> float:
        """The number of a category; raises SeqattnError, with the nearest category, for an unknown one."""
        if text in self.categories:
            return self.categories[text]
        by_lower = {name.strip().lower(): value for name, value in self.categories.items()}
        if text.strip().lower() in by_lower:
            return by_lower[text.strip().lower()]
        known = ", ".join(list(self.categories)[:10])
        advice = nearest(text, self.categories) or "; add it to the variable's categories in the schema"
        raise SeqattnError(f"variable {self.name!r}: unknown category {text[:60]!r}, known are {known}{advice}")


@dataclass(frozen=True)
class Schema:
    """The variables of a model in the order of its channels, its window in hours, its grid and its labels."""

    variables: tuple[Variable, ...]
    window: float
    steps: int
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)

    @property
    def fitted(self) -> bool:
        return all(variable.mean is not None and variable.std is not None for variable in self.variables)

    def to_json(self) -> str:
        """The text of the file; `from_json` reads it back to an equal schema."""
        variables = [{**asdict(variable), "categories": dict(variable.categories)} for variable in self.variables]
        data = {"version": VERSION, "window": self.window, "steps": self.steps, "labels": list(self.labels)}
        return json.dumps({**data, "variables": variables}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the schema") -> "Schema":
        """Read a schema; raises SeqattnError naming `source` where the text is none."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            problem = f"{source} is not JSON (line {error.lineno}: {error.msg})"
            raise SeqattnError(f"{problem}; give a schema.json that training wrote") from error
        wanted = {"version", "window", "steps", "labels", "variables"}
        if not isinstance(data, dict) or data.get("version") != VERSION or set(data) != wanted:
            keys = ", ".join(sorted(wanted))
            raise SeqattnError(f"{source} is no schema of version {VERSION}; it needs exactly the keys {keys}")
        schema = cls(_variables(data["variables"], source), data["window"], data["steps"], tuple(data["labels"]))
        _check_grid(schema, source)
        return schema


def read_schema(path: str | Path) -> Schema:
    """The schema of a file; raises SeqattnError where it is missing or no schema."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SeqattnError(f"the schema {path} cannot be read; check the path") from error
    return Schema.from_json(text, str(path))


def numbering(given: Sequence[str], schema: Schema, unknown: str = "error") -> NDArray[np.int32]:
    """The schema's channel of each given variable, -1 for one it does not have and unknown="ignore".

    Raises SeqattnError, with the nearest name, for an unknown variable and unknown="error".
    """
    if unknown not in ("error", "ignore"):
        raise SeqattnError(f"unknown is {unknown!r}; it must be 'error' or 'ignore'")
    channels = {name: channel for channel, name in enumerate(schema.names)}
    strange = [name for name in given if name not in channels]
    if strange and unknown == "error":
        advice = nearest(strange[0], schema.names) or "; remove it from the table or ignore unknown variables"
        raise SeqattnError(f"variable {strange[0][:60]!r} is not in the schema of {len(channels)} variables{advice}")
    return np.array([channels.get(name, -1) for name in given], dtype=np.int32)


def fit(schema: Schema, channel: NDArray[np.int32], values: NDArray[np.float32]) -> Schema:
    """The schema with mean and standard deviation (divisor n - 1) of the given values, which are the training split's.

    channel, values: (events,). A variable without a value gets mean 0 and deviation 1; one that never changes gets mean
    0 and its own size as deviation, so that its observations still differ from absence.
    """
    scaled, _ = _clip_and_scale(schema, channel, values)
    variables = []
    for number, variable in enumerate(schema.variables):
        chosen = scaled[channel == number]
        mean, std = 0.0, 1.0
        if len(chosen) and chosen.min() < chosen.max():
            mean, std = float(chosen.mean()), float(chosen.std(ddof=1))
        elif len(chosen) and chosen[0]:
            std = abs(float(chosen[0]))
        variables.append(replace(variable, mean=mean, std=std))
    return replace(schema, variables=tuple(variables))


def normalise(
    schema: Schema, channel: NDArray[np.int32], values: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Values clipped, scaled and z-scored with the fitted statistics, and how many were clipped per variable."""
    if not schema.fitted:
        raise SeqattnError("the schema has no statistics; fit it on the training split first")
    scaled, clipped = _clip_and_scale(schema, channel, values)
    means = np.array([variable.mean for variable in schema.variables], dtype=np.float64)
    deviations = np.array([variable.std for variable in schema.variables], dtype=np.float64)
    return ((scaled - means[channel]) / deviations[channel]).astype(np.float32), clipped


def _clip_and_scale(
    schema: Schema, channel: NDArray[np.int32], values: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    low = np.array([-np.inf if v.low is None else v.low for v in schema.variables])
    high = np.array([np.inf if v.high is None else v.high for v in schema.variables])
    logarithmic = np.array([variable.scale == "log" for variable in schema.variables], dtype=bool)
    low32, high32 = low.astype(np.float32), high.astype(np.float32)  # a float32 at the limit is inside
    outside = (values < low32[channel]) | (values > high32[channel])
    scaled = np.clip(values.astype(np.float64), low[channel], high[channel])
    chosen = logarithmic[channel]
    scaled[chosen] = np.log1p(scaled[chosen])
    return scaled, np.bincount(channel[outside], minlength=len(low))


def _variables(entries: Any, source: str) -> tuple[Variable, ...]:
    known = [item.name for item in fields(Variable)]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise SeqattnError(f"{source}: 'variables' must be a list of at least one object with a name")
    for number, entry in enumerate(entries, 1):
        strange = [key for key in entry if key not in known]
        if strange:
            problem = f"{source}, variable {number}: unknown key {strange[0]!r}"
            raise SeqattnError(problem + (nearest(strange[0], known) or f"; known are {', '.join(known)}"))
        if not isinstance(entry.get("name"), str) or not entry["name"]:
            raise SeqattnError(f"{source}, variable {number}: it has no name; give one")
    variables = tuple(Variable(**entry) for entry in entries)
    names = [variable.name for variable in variables]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SeqattnError(f"{source}: variable {twice!r} is there twice; remove one")
    return variables


def _check_grid(schema: Schema, source: str) -> None:
    window, steps = schema.window, schema.steps
    if not isinstance(window, int | float) or not 0 < window < math.inf:
        raise SeqattnError(f"{source}: window is {window!r}; it must be a positive number of hours")
    if not isinstance(steps, int) or steps < 2:
        raise SeqattnError(f"{source}: steps is {steps!r}; it must be a whole number of at least 2")
