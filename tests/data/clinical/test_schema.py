import json

import numpy as np
import pytest

from seqattn.data.clinical.schema import Schema, Variable, fit, normalise, numbering, read_schema
from seqattn.errors import SeqattnError

COMA = {"to pain": 2.0, "spontaneously": 4.0}
VARIABLES = (
    Variable("HR", low=0, high=300),
    Variable("Lactate", low=0, high=40, scale="log"),
    Variable("GCS eye", "category", categories=COMA),
)
SCHEMA = Schema(VARIABLES, 48.0, 24, ("death",))


def columns(*events: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([e[0] for e in events], np.int32), np.array([e[1] for e in events], np.float32)


def test_json_brings_back_the_same_schema() -> None:
    fitted = fit(SCHEMA, *columns((0, 70), (0, 90), (1, 2), (1, 3), (2, 4)))
    assert Schema.from_json(fitted.to_json()) == fitted
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA


def test_statistics_are_of_scaled_and_clipped_values_with_divisor_n_minus_1() -> None:
    fitted = fit(SCHEMA, *columns((0, 70), (0, 90), (0, 900), (1, 1), (1, 3), (2, 4), (2, 4)))
    hr, lactate, coma = fitted.variables
    assert hr.mean == pytest.approx(np.mean([70, 90, 300]))
    assert hr.std == pytest.approx(np.std([70, 90, 300], ddof=1))
    assert lactate.mean == pytest.approx(np.log1p([1, 3]).mean())
    assert (coma.mean, coma.std) == (0.0, 4.0)  # constant: an observation is 1, and not like absence 0


def test_variable_that_training_lacks_has_mean_0_and_deviation_1() -> None:
    assert (fit(SCHEMA, *columns((0, 70))).variables[1].mean, fit(SCHEMA, *columns((0, 70))).variables[1].std) == (0, 1)


def test_normalised_training_values_have_mean_0_and_deviation_1() -> None:
    channel, values = columns(*((0, value) for value in (60, 70, 80, 400)))
    scaled, clipped = normalise(fit(SCHEMA, channel, values), channel, values)
    assert scaled.dtype == np.float32
    assert scaled.mean() == pytest.approx(0, abs=1e-6)
    assert scaled.std(ddof=1) == pytest.approx(1, abs=1e-6)
    assert clipped.tolist() == [1, 0, 0]


def test_value_at_the_limit_in_float32_is_not_clipped() -> None:
    schema = Schema((Variable("FiO2", low=0.21, high=1),), 48.0, 24)
    channel, values = columns((0, 0.21), (0, 1.0), (0, 0.5))
    assert normalise(fit(schema, channel, values), channel, values)[1].tolist() == [0]


def test_unfitted_schema_does_not_normalise() -> None:
    with pytest.raises(SeqattnError, match="no statistics"):
        normalise(SCHEMA, *columns((0, 70)))


def test_variables_are_numbered_by_the_schema() -> None:
    assert numbering(["GCS eye", "HR"], SCHEMA).tolist() == [2, 0]
    assert numbering(["HR", "other"], SCHEMA, "ignore").tolist() == [0, -1]


def test_unknown_variable_offers_the_nearest() -> None:
    with pytest.raises(SeqattnError, match=r"'Lactat' is not in the schema.*mean Lactate\?"):
        numbering(["Lactat"], SCHEMA)


@pytest.mark.parametrize(("text", "number"), [("to pain", 2), ("To Pain ", 2), ("SPONTANEOUSLY", 4)])
def test_categories_ignore_case_and_blanks(text: str, number: float) -> None:
    assert VARIABLES[2].number(text) == number


def test_unknown_category_offers_the_nearest() -> None:
    with pytest.raises(SeqattnError, match=r"unknown category 'spontaneous'.*mean spontaneously\?"):
        VARIABLES[2].number("spontaneous")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "text"}, "kind"),
        ({"scale": "sqrt"}, "scale"),
        ({"low": 3, "high": 2}, "low must be the smaller"),
        ({"scale": "log"}, "needs a low"),
        ({"scale": "log", "low": -1}, "needs a low"),
        ({"std": 0.0}, "std"),
        ({"high": float("nan")}, "high"),
        ({"low": "1"}, "low"),
    ],
)
def test_variable_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(SeqattnError, match=message):
        Variable("HR", **options)


def changed(**changes: object) -> str:
    return json.dumps({**json.loads(SCHEMA.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no schema of version"),
        (changed(version=9), "no schema of version"),
        (changed(more=1), "exactly the keys"),
        (changed(variables=[]), "at least one"),
        (changed(variables=[{"kind": "real"}]), "variable 1: it has no name"),
        (changed(variables=[{"name": "a", "hight": 3}]), r"unknown key 'hight'; did you mean high\?"),
        (changed(variables=[{"name": "a"}, {"name": "a"}]), "'a' is there twice"),
        (changed(window=-1), "window"),
        (changed(steps=1), "steps"),
    ],
)
def test_damaged_schema_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(SeqattnError, match=message):
        Schema.from_json(text)


def test_missing_file_is_one_sentence(tmp_path) -> None:
    with pytest.raises(SeqattnError, match="cannot be read"):
        read_schema(tmp_path / "schema.json")
