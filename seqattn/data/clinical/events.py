"""From the columns of a table to the sorted, checked events of stays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seqattn.data.clinical.records import Floats, Indices, starts_of
from seqattn.errors import SeqattnError

DUPLICATES = ("last", "first", "mean", "error")
Sorted = tuple[Indices, Floats, NDArray[np.int32], Floats]


def sort_events(
    stay: NDArray[np.integer],
    times: NDArray[np.floating],
    channel: NDArray[np.integer],
    values: NDArray[np.floating],
    *,
    ids: Sequence[str] | NDArray[np.str_],
    names: Sequence[str] | NDArray[np.str_],
    window: float,
    duplicates: str = "last",
    counts: dict[str, int],
) -> Sorted:
    """Starts, times, channel and values as `Stays` holds them, of events in any order.

    stay: the position in `ids`. times: hours from the window's start. names: of the channels, for errors.
    Values that are missing or infinite and times outside 0 to `window` are left out; events of one stay, time and
    channel become one by the policy `duplicates`: the last or the first in the given order, their mean, or an error.
    All of it is counted in `counts`. Times are kept as float32.

    Raises SeqattnError for an unknown policy, and for duplicates under the policy "error".
    """
    if duplicates not in DUPLICATES:
        raise SeqattnError(f"duplicates is {duplicates!r}; it must be one of {', '.join(DUPLICATES)}")
    with np.errstate(over="ignore"):
        columns = times.astype(np.float32), channel.astype(np.int32), values.astype(np.float32)
    return _sort(stay, *columns, ids, names, window, duplicates, counts)


def _sort(
    stay: NDArray[np.integer],
    times: Floats,
    channel: NDArray[np.int32],
    values: Floats,
    ids: Sequence[str] | NDArray[np.str_],
    names: Sequence[str] | NDArray[np.str_],
    window: float,
    duplicates: str,
    counts: dict[str, int],
) -> Sorted:
    finite = np.isfinite(values)
    inside = (times >= 0) & (times <= np.float32(window))
    add(counts, "events with a missing or infinite value left out", (~finite).sum())
    add(counts, "events outside the window left out", (finite & ~inside).sum())
    kept = finite & inside
    if not kept.all():
        stay, times, channel, values = stay[kept], times[kept], channel[kept], values[kept]
    times += np.float32(0)  # -0 to 0
    # (stay, time) as one number: non-negative floats sort as their bits do
    key = (stay.astype(np.int64) << 32) | times.view(np.int32)
    add(counts, "events out of order sorted", _out_of_order(stay, times))
    order = np.lexsort((channel, key))
    key, channel, values = key[order], channel[order], values[order]
    same = (key[1:] == key[:-1]) & (channel[1:] == channel[:-1])
    if same.any():
        if duplicates == "error":
            first = int(np.flatnonzero(same)[0])
            hour = times[order[first]]
            where = f"{ids[int(key[first] >> 32)]}: {names[channel[first]]!r} has two values at hour {hour:g}"
            raise SeqattnError(f"stay {where}; remove one or choose the policy last, first or mean")
        add(counts, f"events repeated at the same time: {duplicates} kept", same.sum())
        key, channel, values = _merge(key, channel, values, same, duplicates)
    return starts_of(key >> 32, len(ids)), (key & 0xFFFFFFFF).astype(np.int32).view(np.float32), channel, values


def add(counts: dict[str, int], phrase: str, count: int | np.integer) -> None:
    """Add to one entry of `counts`; nothing is no entry."""
    if count:
        counts[phrase] = counts.get(phrase, 0) + int(count)


def _out_of_order(stay: NDArray[np.integer], times: Floats) -> int:
    """How many events come earlier than the one before them of the same stay."""
    if (stay[1:] < stay[:-1]).any():
        by_stay = np.argsort(stay, kind="stable")
        stay, times = stay[by_stay], times[by_stay]
    return int(((times[1:] < times[:-1]) & (stay[1:] == stay[:-1])).sum())


def _merge(
    key: Indices, channel: NDArray[np.int32], values: Floats, same: NDArray[np.bool_], policy: str
) -> tuple[Indices, NDArray[np.int32], Floats]:
    begins = np.concatenate([[True], ~same])
    ends = np.concatenate([~same, [True]])
    chosen = ends if policy == "last" else begins
    merged = values[chosen]
    if policy == "mean":
        first = np.flatnonzero(begins)
        sizes = np.diff(np.append(first, len(values)))
        merged = (np.add.reduceat(values.astype(np.float64), first) / sizes).astype(np.float32)
    return key[chosen], channel[chosen], merged
