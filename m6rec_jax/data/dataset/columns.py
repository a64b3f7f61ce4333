"""How a value of a file becomes its declared type, in SQL.

Empty strings are missing values (null), in Parquet as in CSV. A list is written with `|` in text.
Times are numbers (unix seconds), ISO 8601 text, or timestamps and dates of Parquet; a time without
a zone is UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from m6rec_jax.data.dataset.schema import ID, LIST_SEPARATOR, TIME, VALUE


class Kind(NamedTuple):
    """Types of a kind of column, and what is said of a value that does not fit."""

    arrow_type: pa.DataType
    sql_type: str
    misfit: str


_BAD_LIST = (
    f"is not a list: write its members with {LIST_SEPARATOR!r} between them, none of them empty, "
    "without brackets or quotes"
)
_BAD_ID = "is not an id: ids are strings or whole numbers"
_BAD_TIME = "is neither unix seconds nor an ISO 8601 time"
KINDS = {
    "string": Kind(pa.string(), "VARCHAR", "is not a string"),
    "int": Kind(pa.int64(), "BIGINT", "is not a whole number of at most 64 bits"),
    "float": Kind(pa.float64(), "DOUBLE", "is not a finite number"),
    "bool": Kind(pa.bool_(), "BOOLEAN", "is not true or false"),
    "list<string>": Kind(pa.list_(pa.string()), "VARCHAR[]", _BAD_LIST),
    ID: Kind(pa.string(), "VARCHAR", _BAD_ID),
    TIME: Kind(pa.float64(), "DOUBLE", _BAD_TIME),
    VALUE: Kind(pa.float64(), "DOUBLE", "is not a finite number"),
}
_NUMBERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DOUBLE|FLOAT|BOOLEAN|DECIMAL.*")
_PRINTED_LIST = r"^\s*\[\s*(?:['\"].*['\"]\s*)?\]\s*$"
_TRUE, _FALSE = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")


def arrow_schema(kinds: Mapping[str, str]) -> pa.Schema:
    """The schema of columns, from the kind of each."""
    return pa.schema([(name, KINDS[kind].arrow_type) for name, kind in kinds.items()])


def identifier(name: str) -> str:
    """The name of a column as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def conversion(column: str, sql_type: str, kind: str) -> tuple[str, str]:
    """SQL for the value of a column as a kind, and for the text of a value that does not fit.

    Both are null where a value is missing; `sql_type` is the column's, as DuckDB names it.
    """
    is_number = bool(_NUMBERS.fullmatch(sql_type))
    is_list, is_text = sql_type.endswith("]"), bool(re.fullmatch(r"VARCHAR|ENUM.*", sql_type))
    is_nested = is_list or sql_type.startswith(("STRUCT", "MAP", "UNION"))
    text = f"nullif(CAST({column} AS VARCHAR), '')"
    # pandas writes a missing number as NaN; as a time or the value of an event it is an error.
    if kind in ("int", "float") or (sql_type in ("DOUBLE", "FLOAT") and kind not in (TIME, VALUE)):
        text = f"CASE WHEN lower(trim({text})) <> 'nan' THEN {text} END"
    raw = column if is_number else text
    number = f"TRY_CAST({raw} AS DOUBLE)"
    finite = f"CASE WHEN isfinite({number}) THEN {number} END"
    if not (is_list or is_text) if kind == "list<string>" else is_nested:
        value = f"CAST(NULL AS {KINDS[kind].sql_type})"
    elif kind == ID and is_number:
        # A column of integers with a gap arrives from pandas as floats: 12.0 is the id "12".
        fits = f"{number} = trunc({number}) AND {number} > {-(2.0**127)}"
        value = f"CASE WHEN {fits} THEN CAST(TRY_CAST({column} AS HUGEINT) AS VARCHAR) END"
    elif kind in ("string", ID):
        value = text
    elif kind == "int":
        value = f"CASE WHEN {number} = trunc({number}) THEN TRY_CAST({raw} AS BIGINT) END"
    elif kind == TIME:
        moment = column if sql_type.startswith(("TIMESTAMP", "DATE")) else text
        seconds = f"epoch_us(TRY_CAST({moment} AS TIMESTAMPTZ)) / 1e6"
        value = f"CASE WHEN {number} IS NULL THEN {seconds} ELSE {finite} END"
    elif kind == "bool":
        word = f"lower(trim({text}))"
        value = f"""CASE WHEN {word} IN {_TRUE} OR {number} = 1 THEN true
          WHEN {word} IN {_FALSE} OR {number} = 0 THEN false END"""
    elif kind == "list<string>":
        members = f"CAST({column} AS VARCHAR[])"
        fits = f"len(list_filter({members}, lambda m: m <> '')) = len({members})"
        if is_text:
            divided = f"string_split({text}, {literal(LIST_SEPARATOR)})"
            members = rf"list_transform({divided}, lambda m: trim(m, E' \t\r\n'))"
            printed = f"regexp_matches({text}, {literal(_PRINTED_LIST)}, 's')"
            fits = f"NOT {printed} AND NOT list_contains({members}, '')"
        value = f"CASE WHEN {fits} THEN {members} END"
    else:
        value = finite
    return value, f"CASE WHEN ({value}) IS NULL THEN {text} END"
