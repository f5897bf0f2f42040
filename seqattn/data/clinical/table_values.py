"""Numbers of tables: values that may be categories, and static columns that may be text."""

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqattn.data.clinical.records import Floats, Indices
from seqattn.data.clinical.schema import Schema, Variable
from seqattn.data.clinical.stay_index import StayIndex
from seqattn.data.clinical.tables import Table
from seqattn.errors import SeqattnError


def unfitted(variable: Variable) -> Variable:
    """The variable without statistics, which are another training set's."""
    return replace(variable, mean=None, std=None)


def event_values(table: Table, channel: Indices, variables: tuple[Variable, ...]) -> NDArray[np.float64]:
    """(rows,) the column `value` as numbers, categories by their variable's, NaN where empty; channel: (rows,)."""
    given = table.data["value"]
    categorical = np.array([bool(variable.categories) for variable in variables])[channel]
    if not categorical.any() or pd.api.types.is_numeric_dtype(given):
        return table.numbers("value")
    values = pd.to_numeric(given, errors="coerce").to_numpy(np.float64, copy=True)
    texts = table.texts("value", values)
    for row in texts[~categorical[texts]][:1]:
        text = str(given.iloc[int(row)])[:40]
        name = variables[channel[row]].name
        raise table.fault(row, f"value is {text!r}, not a number, and variable {name!r} has no categories")
    texts = np.flatnonzero(np.isnan(values) & given.notna().to_numpy() & categorical)
    texts = texts[(given.iloc[texts].astype(str).str.lower() != "nan").to_numpy(bool)]
    numbers: dict[tuple[int, str], float] = {}
    for row, text in zip(texts.tolist(), given.iloc[texts].astype(str).tolist(), strict=True):
        key = (int(channel[row]), text)
        if key not in numbers:
            try:
                numbers[key] = variables[key[0]].number(text)
            except SeqattnError as error:
                raise table.fault(row, str(error)) from error
        values[row] = numbers[key]
    return values


def _categories(table: Table, column: str, variable: Variable) -> NDArray[np.float64]:
    codes, texts = pd.factorize(table.data[column])
    numbers = [np.nan]  # of code -1, a gap
    for code, text in reversed(list(enumerate(texts))):
        try:
            numbers.insert(0, variable.number(str(text)))
        except SeqattnError as error:
            raise table.fault(np.flatnonzero(codes == code)[0], str(error)) from error
    return np.array(numbers)[codes]


def static_values(table: Table | None, index: StayIndex, schema: Schema | None) -> tuple[tuple[Variable, ...], Floats]:
    """Variables and (stays, variables) values of the table of static values.

    A column of text without categories in the schema becomes a variable COLUMN=TEXT for each text, which is 1 where the
    stay has it and unknown elsewhere: so a stay's values do not depend on which other stays are read with it.
    Numbers with gaps, empty or NA, stay numbers. Raises SeqattnError for a column of more than 100 texts.
    """
    if table is None:
        return (), np.empty((len(index.ids), 0), np.float32)
    place, kept = index.places(table)
    known = {variable.name: variable for variable in schema.variables} if schema else {}
    variables: list[Variable] = []
    columns: list[NDArray] = []
    for name in (str(name) for name in table.data if name not in ("id", "subject")):
        given = table.data[name]
        if table.is_numeric(name):
            found = {name: table.numbers(name)}
        elif name in known and known[name].categories:
            found = {name: _categories(table, name, known[name])}
        else:
            texts = sorted({str(text) for text in given.dropna()})
            if len(texts) > 100:
                problem = f"{table.path}: column {name!r} has {len(texts)} different texts"
                raise SeqattnError(f"{problem}; give numbers or fewer texts")
            found = {f"{name}={v}": np.where((given.astype(str) == v).to_numpy(), 1.0, np.nan) for v in texts}
        for column, values in found.items():
            variables.append(unfitted(known.get(column) or Variable(column)))
            columns.append(values)
    static = np.full((len(index.ids), len(columns)), np.nan, np.float32)
    if columns:
        static[place] = np.stack(columns, axis=1)[kept]
    static[~np.isfinite(static)] = np.nan
    return tuple(variables), static
