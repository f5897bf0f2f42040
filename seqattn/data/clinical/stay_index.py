"""Which stays the tables of a folder speak of, and where on their clock each stay's window starts."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seqattn.data.clinical.events import add
from seqattn.data.clinical.records import Indices
from seqattn.data.clinical.tables import Table
from seqattn.errors import SeqattnError

_EVERY_STAY = ("static", "anchors")  # tables of one row for every stay


@dataclass(frozen=True, eq=False)
class StayIndex:
    """The stays of all tables, sorted by id, and where on the tables' clock each window starts.

    starts: (stays,) timestamps, or None where times are hours. shifts: (stays,) hours from there to the window.
    """

    ids: NDArray[np.str_]
    starts: NDArray[np.datetime64] | None
    shifts: NDArray[np.float64]
    window: float

    @classmethod
    def of(cls, tables: dict[str, Table], window: float, labelled: bool, counts: dict[str, int]) -> "StayIndex":
        """The stays of the labels, else those of all other tables.

        static and anchors name every stay: where one is there, a label of a stay that no other table names is an error.
        Where neither is, a label alone tells of a stay without events: it is kept, and counted.
        """
        named = {name: table.factorized("id")[1] for name, table in tables.items() if "id" in table.data}
        for name in ("labels", *_EVERY_STAY) if labelled else _EVERY_STAY:
            if name in tables:
                tables[name].check_once("id", "stay")
        others = [ids for name, ids in named.items() if name not in ("labels", "splits")]
        ids = named["labels"] if labelled else np.unique(np.concatenate(others))
        if labelled:
            unnamed = _check_ids(tables["labels"], named)
            add(counts, "labels of stays that no other table names kept as stays without events", len(unnamed))
        index = cls(ids, None, np.zeros(len(ids)), window)
        if "anchors" in tables:
            place, kept = index.places(tables["anchors"])
            starts = np.full(len(ids), np.datetime64("NaT"), "datetime64[us]")
            if not tables["anchors"].is_time("start"):
                raise SeqattnError(f"{tables['anchors'].path}: start must be a timestamp such as 2024-05-31 17:45:00")
            starts[place] = tables["anchors"].timestamps("start")[kept]
            index = replace(index, starts=starts)
        if "labels" in tables and "window_end" in tables["labels"].data:
            place, kept = index.places(tables["labels"])
            shifts = np.zeros(len(ids))
            shifts[place] = index.hours(tables["labels"], "window_end")[kept] - window
            index = replace(index, shifts=shifts)
        return index

    def places(self, table: Table) -> tuple[Indices, NDArray[np.bool_]]:
        """The stay of each row that belongs to one, and which rows do."""
        codes, names = table.factorized("id")
        place = np.minimum(np.searchsorted(self.ids, names), len(self.ids) - 1)
        kept = (self.ids[place] == names)[codes]
        return place[codes][kept], kept

    def hours(self, table: Table, column: str) -> NDArray[np.float64]:
        """(rows,) hours from each window's start; rows of no stay are NaN."""
        place, kept = self.places(table)
        hours = np.full(len(table), np.nan)
        if not table.is_time(column):
            hours[kept] = table.numbers(column)[kept] - self.shifts[place]
            return hours
        if self.starts is None:
            raise table.fault(0, f"{column} is a timestamp; add a table anchors with columns id and start")
        if np.isnat(self.starts[place]).any():
            absent = self.ids[place[np.isnat(self.starts[place])][0]]
            raise SeqattnError(f"stay {absent} of {table.path} has no start in the table anchors; add it")
        elapsed = (table.timestamps(column)[kept] - self.starts[place]) / np.timedelta64(1, "us")
        hours[kept] = elapsed / 3.6e9 - self.shifts[place]
        return hours


def _check_ids(labels: Table, named: dict[str, NDArray[np.str_]]) -> NDArray[np.str_]:
    """The ids that only the labels name; raises SeqattnError where they name no stay, and for stays without a label."""
    ids = named["labels"]
    tables = {name: there for name, there in named.items() if name not in ("labels", "splits")}
    for name, there in tables.items():
        absent = np.setdiff1d(there, ids)
        if len(absent):
            problem = f"{len(absent)} stays of the table {name} have no row in {labels.path}, the first is {absent[0]}"
            raise SeqattnError(f"{problem}; add their labels or remove them")
    unnamed = np.setdiff1d(ids, np.concatenate(list(tables.values())))
    if len(unnamed) and tables.keys() & set(_EVERY_STAY):
        problem = f"{len(unnamed)} labels of {labels.path} belong to no stay of the other tables"
        raise SeqattnError(f"{problem}, the first is {unnamed[0]}; remove them")
    return unnamed
