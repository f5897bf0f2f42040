from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data.clinical.events import sort_events
from seqattn.data.clinical.in_memory import from_pypots, from_samples
from seqattn.data.clinical.records import (
    Notes,
    Stays,
    check_subjects,
    describe,
    latest_notes,
    latest_rows,
    static_as_events,
)
from seqattn.data.clinical.schema import Variable
from seqattn.errors import SeqattnError

NAN = float("nan")


def sort(*events: tuple[int, float, int, float], duplicates: str = "last", stays: int = 2) -> tuple[list, dict]:
    """Events as (stay, time, channel, value) in `sort_events`' order, and the counts."""
    counts: dict[str, int] = {}
    stay, time, channel, value = (np.array(column) for column in zip(*events, strict=True))
    starts, times, channels, values = sort_events(
        stay, time.astype(float), channel, value.astype(float), ids=[f"s{n}" for n in range(stays)],
        names=["HR", "BP", "pH"], window=48.0, duplicates=duplicates, counts=counts,
    )  # fmt: skip
    owners = np.repeat(np.arange(stays), np.diff(starts))
    assert (times.dtype, channels.dtype, values.dtype) == (np.float32, np.int32, np.float32)
    return list(zip(owners.tolist(), times.tolist(), channels.tolist(), values.tolist(), strict=True)), counts


def three() -> Stays:
    """Stays of 3, 0 and 2 rows, the first with two events in its first row."""
    return from_samples(
        [
            {"id": "a", "subject": "p", "times": [1, 2, 5], "values": [[80, 60], [81, NAN], [NAN, 62]]},
            {"id": "b", "subject": "q", "times": [], "values": np.empty((0, 2))},
            {"id": "c", "subject": "p", "times": [0, 3], "values": [[NAN, 50], [70, NAN]]},
        ],
        ["HR", "BP"],
        window=6.0,
    )


def test_events_are_sorted_by_stay_time_and_channel() -> None:
    events, counts = sort((1, 5, 0, 1.0), (0, 3, 1, 2.0), (0, 3, 0, 3.0), (0, 1, 2, 4.0))
    assert events == [(0, 1, 2, 4), (0, 3, 0, 3), (0, 3, 1, 2), (1, 5, 0, 1)]
    assert counts == {"events out of order sorted": 1}


def test_values_that_are_not_finite_and_times_outside_are_counted() -> None:
    events, counts = sort(
        (0, 1, 0, NAN), (0, 1, 1, np.inf), (0, 2, 0, 1e300), (0, -1, 0, 1), (0, 48.1, 0, 1), (0, 48, 0, 7)
    )
    assert events == [(0, 48, 0, 7)]
    assert counts == {
        "events with a missing or infinite value left out": 3,
        "events outside the window left out": 2,
    }


@pytest.mark.parametrize(("policy", "kept"), [("last", 6.0), ("first", 2.0), ("mean", 4.0)])
def test_duplicates_become_one(policy: str, kept: float) -> None:
    events, counts = sort((0, 1, 0, 2.0), (0, 1, 1, 9.0), (0, 1, 0, 4.0), (0, 1, 0, 6.0), duplicates=policy)
    assert events == [(0, 1, 0, kept), (0, 1, 1, 9)]
    assert counts == {f"events repeated at the same time: {policy} kept": 2}


def test_duplicates_can_be_an_error() -> None:
    with pytest.raises(SeqattnError, match="stay s1: 'BP' has two values at hour 3"):
        sort((1, 3, 1, 1.0), (1, 3, 1, 2.0), duplicates="error")
    with pytest.raises(SeqattnError, match="duplicates is 'newest'"):
        sort((1, 3, 1, 1.0), duplicates="newest")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 480), st.integers(0, 2), st.integers(0, 9)), min_size=1))
def test_sorting_agrees_with_python(drawn: list[tuple[int, int, int, int]]) -> None:
    events, _ = sort(*((stay, time / 10, channel, value) for stay, time, channel, value in drawn))
    last = {(stay, float(np.float32(time / 10)), channel): float(value) for stay, time, channel, value in drawn}
    assert events == [(*key, last[key]) for key in sorted(last)]


def test_rows_and_lengths() -> None:
    stays = three()
    assert stays.rows.tolist() == [0, 0, 1, 2, 0, 1]
    assert stays.lengths.tolist() == [3, 0, 2]
    empty = stays.subset([1])
    assert (empty.rows.tolist(), empty.lengths.tolist()) == ([], [0])


def test_a_stay_is_dense() -> None:
    stay = three().stay(0)
    assert (stay.id, stay.subject) == ("a", "p")
    assert stay.times.tolist() == [1, 2, 5]
    assert stay.values.tolist() == [[80, 60], [81, 0], [0, 62]]
    assert stay.mask.tolist() == [[True, True], [True, False], [False, True]]


def test_subset_takes_stays_in_the_given_order() -> None:
    stays = three()
    chosen = stays.subset([2, 0])
    assert chosen.ids.tolist() == ["c", "a"]
    for new, old in ((0, 2), (1, 0)):
        np.testing.assert_array_equal(chosen.stay(new).values, stays.stay(old).values)


def test_static_values_are_events_at_hour_0() -> None:
    known = np.array([[50, NAN], [NAN, NAN], [60, 1]], np.float32)
    stays = replace(three(), static_variables=(Variable("Age"), Variable("Sex")), static=known)
    merged = static_as_events(stays)
    assert [variable.name for variable in merged.variables] == ["HR", "BP", "Age", "Sex"]
    assert merged.lengths.tolist() == [4, 0, 2]
    assert merged.stay(0).values[0].tolist() == [0, 0, 50, 0]
    assert merged.stay(2).values.tolist() == [[0, 50, 60, 1], [70, 0, 0, 0]]


def test_static_value_of_a_variables_name_is_refused() -> None:
    stays = replace(three(), static_variables=(Variable("HR"),), static=np.ones((3, 1), np.float32))
    with pytest.raises(SeqattnError, match="'HR' is both"):
        static_as_events(stays)


def test_long_stays_keep_their_latest_rows() -> None:
    cut = latest_rows(three(), 2)
    assert cut.stay(0).times.tolist() == [2, 5]
    assert cut.stay(2).times.tolist() == [0, 3]
    assert cut.counts == {"stays cut to their latest 2 times": 1, "events before the latest 2 times left out": 2}
    assert describe(cut.counts)[0] == "1 stays cut to their latest 2 times"
    assert latest_rows(three(), 3).counts == {}


def test_a_hundred_thousand_rows_are_cut_and_counted() -> None:
    hours = np.linspace(0, 48, 100_000)
    stays = from_samples([{"id": "a", "times": hours, "values": hours[:, None]}], ["HR"], window=48.0)
    cut = latest_rows(stays, 1000)
    assert cut.lengths.tolist() == [1000]
    assert cut.times[-1] == 48
    assert cut.counts["stays cut to their latest 1000 times"] == 1


def test_latest_notes() -> None:
    notes = Notes(np.array([0, 3, 3, 4]), np.arange(4, dtype=np.float32), ("a", "b", "c", "d"))
    cut = latest_notes(replace(three(), notes=notes), 2)
    assert cut.notes is not None
    assert cut.notes.texts == ("b", "c", "d")
    assert cut.notes.starts.tolist() == [0, 2, 2, 3]
    assert cut.counts == {"notes before the latest 2 of their stay left out": 1}
    assert cut.subset([2]).stay(0).note_texts == ("d",)


def test_subjects_may_not_cross_splits() -> None:
    stays = three()
    check_subjects(stays, {"train": np.array([0, 2]), "test": np.array([1])})
    with pytest.raises(SeqattnError, match="subject p has stays in train and in test"):
        check_subjects(stays, {"train": np.array([0]), "test": np.array([1, 2])})


def test_pypots_arrays() -> None:
    x = np.arange(12, dtype=float).reshape(2, 3, 2)
    x[0, 1] = NAN
    stays = from_pypots({"X": x, "y": [0, 1]})
    assert stays.stay(0).times.tolist() == [0, 2]
    assert stays.labels.tolist() == [[0], [1]]
    assert stays.window == 3
    timed = from_pypots({"X": x}, times=[0.5, 1.5, 40], window=48.0, variables=["HR", "BP"])
    assert timed.stay(1).times.tolist() == [0.5, 1.5, 40]
    assert np.isnan(timed.labels).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.zeros((1, 2, 3))}, r"no key 'X'; did you mean x\?"),
        ({"X": np.zeros((2, 3))}, "stays, steps, variables"),
        ({"X": np.zeros((2, 3, 1)), "y": [1]}, "1 labels for 2 stays"),
    ],
)
def test_wrong_pypots_arrays(data: dict, message: str) -> None:
    with pytest.raises(SeqattnError, match=message):
        from_pypots(data)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([{"times": [1]}], "sample 0 has no 'id'"),
        ([{"id": "a", "times": [1], "values": [[1.0]], "lable": {}}], r"unknown key 'lable'; did you mean label\?"),
        ([{"id": "a", "times": [1], "values": [[1.0, 2.0]]}], "sample a has times"),
        ([{"id": "a", "times": [1], "values": [[1.0]]}] * 2, "the same id"),
        ([{"id": "a", "times": [1], "values": [[1.0]], "notes": ["x"]}], "1 notes and 0 note_times"),
    ],
)
def test_wrong_samples(samples: list, message: str) -> None:
    with pytest.raises(SeqattnError, match=message):
        from_samples(samples, ["HR"], window=48.0)


def test_samples_with_notes_and_labels() -> None:
    sample = {"id": "a", "times": [1], "values": [[1.0]], "label": {"death": 1}, "split": "test"}
    stays = from_samples([{**sample, "notes": ["late", "b", "a"], "note_times": [49, 2, -3]}], ["HR"], window=48.0)
    assert stays.stay(0).note_texts == ("a", "b")
    assert stays.counts == {"notes outside the window left out": 1}
    assert stays.label_names == ("death",)
    assert stays.splits.tolist() == ["test"]
