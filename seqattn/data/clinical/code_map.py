"""Which codes of a MEDS folder are which variable: a YAML file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seqattn.data.clinical.schema import Variable
from seqattn.errors import SeqattnError, nearest

NOTES = -2
UNMAPPED = -1
_MATCHES = ("exact", "prefix", "regex")
_VARIABLE = ("low", "high", "scale", "categories")


@dataclass(frozen=True)
class Matcher:
    """The codes of a variable: one of `exact`, those that begin with a `prefix`, and matches of a whole `regex`."""

    exact: frozenset[str] = frozenset()
    prefix: tuple[str, ...] = ()
    regex: tuple[re.Pattern[str], ...] = ()

    def takes(self, code: str) -> bool:
        by_pattern = any(pattern.fullmatch(code) for pattern in self.regex)
        return code in self.exact or by_pattern or code.startswith(self.prefix or ("\0",))


@dataclass(frozen=True)
class CodeMap:
    """The variables, the codes and the factor of each, and the codes of notes.

    factors: what values are multiplied with, to come to the variable's unit. presence: variables whose events count as
    1 whatever their value, such as drugs and procedures.
    """

    variables: tuple[Variable, ...]
    matchers: tuple[Matcher, ...]
    factors: tuple[float, ...]
    presence: tuple[bool, ...]
    notes: Matcher = field(default_factory=Matcher)

    def channels(self, codes: Sequence[str]) -> np.ndarray:
        """(codes,) the variable of each code, NOTES for a note's, UNMAPPED for any other.

        Raises SeqattnError for a code of two variables.
        """
        return np.array([self._channel(code) for code in codes], dtype=np.int32)

    def _channel(self, code: str) -> int:
        found = [number for number, matcher in enumerate(self.matchers) if matcher.takes(code)]
        if len(found) > 1:
            names = " and ".join(repr(self.variables[number].name) for number in found[:2])
            raise SeqattnError(f"the code map gives the code {code!r} to {names}; narrow one of them")
        return found[0] if found else NOTES if self.notes.takes(code) else UNMAPPED


def read_code_map(path: str | Path) -> CodeMap:
    """Read a code map.

    variables:
      Heart rate: {exact: [HR//bpm], prefix: [LAB//220045], regex: ["LAB//.*heart.*"], unit: bpm, factor: 1,
                   low: 0, high: 350, scale: linear, presence: false, categories: {}}
    notes: {prefix: [NOTE//]}

    All keys of a variable are optional but one of exact, prefix and regex; `unit` is for the reader of the file.
    Raises SeqattnError for a file that is missing or no code map, the nearest key offered.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SeqattnError(f"the code map {path} cannot be read as YAML ({reason}); check it") from error
    if not isinstance(data, dict) or not isinstance(data.get("variables"), dict) or not data["variables"]:
        raise SeqattnError(f"{path} is no code map; it needs the key 'variables', with at least one name below")
    _check_keys(data, ("variables", "notes"), str(path))
    names = [str(name) for name in data["variables"]]
    entries = [_entry(entry, f"{path}, {name}") for name, entry in zip(names, data["variables"].values(), strict=True)]
    variables = [
        Variable(
            name,
            kind="category" if entry.get("categories") else "real",
            **{key: entry[key] for key in _VARIABLE if key in entry},
        )
        for name, entry in zip(names, entries, strict=True)
    ]
    factors = tuple(float(entry.get("factor", 1)) for entry in entries)
    presence = tuple(bool(entry.get("presence", False)) for entry in entries)
    matchers = tuple(_matcher(entry, f"{path}, {name}") for name, entry in zip(names, entries, strict=True))
    notes = _matcher(_entry(data["notes"], f"{path}, notes"), f"{path}, notes") if data.get("notes") else Matcher()
    return CodeMap(tuple(variables), matchers, factors, presence, notes)


def write_code_map(codes: dict[str, Variable], notes: str | None = None) -> str:
    """The text of a code map that gives each variable one code."""
    variables: dict[str, dict[str, Any]] = {}
    for code, variable in codes.items():
        known = {key: getattr(variable, key) for key in ("low", "high") if getattr(variable, key) is not None}
        known |= {"scale": variable.scale} if variable.scale != "linear" else {}
        known |= {"categories": dict(variable.categories)} if variable.categories else {}
        variables[variable.name] = {"exact": [code], **known}
    data: dict[str, Any] = {"variables": variables}
    if notes is not None:
        data["notes"] = {"exact": [notes]}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _entry(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or not any(entry.get(key) for key in _MATCHES):
        raise SeqattnError(f"{where}: it must have one of exact, prefix and regex, with a list of codes")
    _check_keys(entry, (*_MATCHES, *_VARIABLE, "unit", "factor", "presence"), where)
    if not isinstance(entry.get("factor", 1), int | float):
        raise SeqattnError(f"{where}: factor is {entry['factor']!r}; it must be a number")
    return entry


def _matcher(entry: dict[str, Any], where: str) -> Matcher:
    lists = {key: [entry[key]] if isinstance(entry.get(key), str) else entry.get(key) or [] for key in _MATCHES}
    texts = {key: [str(code) for code in codes] for key, codes in lists.items()}
    try:
        patterns = tuple(re.compile(text) for text in texts["regex"])
    except re.error as error:
        raise SeqattnError(f"{where}: {error.pattern!r} is no regular expression ({error}); mend it") from error
    return Matcher(frozenset(texts["exact"]), tuple(texts["prefix"]), patterns)


def _check_keys(data: dict[str, Any], known: Sequence[str], where: str) -> None:
    strange = [str(key) for key in data if key not in known]
    if strange:
        advice = nearest(strange[0], known) or f"; known are {', '.join(known)}"
        raise SeqattnError(f"{where}: unknown key {strange[0]!r}{advice}")
