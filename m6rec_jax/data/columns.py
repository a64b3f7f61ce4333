"""How a value of a file becomes its declared type, in SQL.

Empty strings are missing values (null), in Parquet as in CSV. A list is written with `|` in text.
Times are numbers (unix seconds), ISO 8601 text, or timestamps and dates of Parquet; a time without
a zone is UTC.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from m6rec_jax.data.schema import ID, LIST_SEPARATOR, TIME, VALUE

ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "list<string>": pa.list_(pa.string()),
    ID: pa.string(),
    TIME: pa.float64(),
    VALUE: pa.float64(),
}
SQL_TYPES = {
    "string": "VARCHAR",
    "int": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "list<string>": "VARCHAR[]",
    ID: "VARCHAR",
    TIME: "DOUBLE",
    VALUE: "DOUBLE",
}
# What is wrong with a value that does not fit: kind of problem, and what it is not.
MISFITS = {
    "string": ("wrong_type", "is not a string"),
    "int": ("wrong_type", "is not a whole number of at most 64 bits"),
    "float": ("wrong_type", "is not a finite number"),
    "bool": ("wrong_type", "is not true or false"),
    "list<string>": (
        "bad_list",
        f"is not a list: write its members with {LIST_SEPARATOR!r} between them, none of them "
        "empty, without brackets or quotes",
    ),
    ID: ("wrong_type", "is not an id: ids are strings or whole numbers"),
    TIME: ("bad_time", "is neither unix seconds nor an ISO 8601 time"),
    VALUE: ("wrong_type", "is not a finite number"),
}
_PRINTED_LIST = r"^\s*\[\s*(?:['\"].*['\"]\s*)?\]\s*$"
_TRUE, _FALSE = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")


def arrow_schema(kinds: Mapping[str, str]) -> pa.Schema:
    """The schema of columns, from the kind of each."""
    return pa.schema([(name, ARROW_TYPES[kind]) for name, kind in kinds.items()])


def identifier(name: str) -> str:
    """The name of a column as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def conversion(column: str, sql_type: str, kind: str) -> tuple[str, str]:
    """SQL for the value of a column as a kind, and for the text of a value that does not fit.

    Args:
      column: an expression in SQL.
      sql_type: its type, as DuckDB names it.
      kind: of `SQL_TYPES`.

    Returns:
      an expression that is null where a value is missing or does not fit, and one that is null but
      where it does not fit.
    """
    family = _family(sql_type)
    if family == "text":
        column = f"nullif(CAST({column} AS VARCHAR), '')"
    elif family == "number" and kind not in (TIME, VALUE):
        # pandas writes a missing number so.
        column = f"CASE WHEN NOT isnan(CAST({column} AS DOUBLE)) THEN {column} END"
    elif family == "null":
        return f"CAST(NULL AS {SQL_TYPES[kind]})", "CAST(NULL AS VARCHAR)"
    value = _value(column, family, kind)
    text = f"CAST({column} AS VARCHAR)"
    is_missing = f"{column} IS NULL"
    if family == "text" and kind in ("int", "float"):
        is_missing += f" OR lower(trim({column})) = 'nan'"
    return value, f"CASE WHEN NOT ({is_missing}) AND ({value}) IS NULL THEN {text} END"


def _family(sql_type: str) -> str:
    if sql_type in ("VARCHAR", "UUID") or sql_type.startswith("ENUM"):
        return "text"
    if sql_type.endswith("INT") or sql_type.startswith(("INTEGER", "UINTEGER", "DECIMAL")):
        return "number"
    if sql_type.startswith("TIMESTAMP") or sql_type == "DATE":
        return "time"
    if sql_type.endswith("[]") and not sql_type.startswith("STRUCT"):
        return "list"
    names = {"DOUBLE": "number", "FLOAT": "number", "BOOLEAN": "bool", '"NULL"': "null"}
    return names.get(sql_type, "other")


def _value(column: str, family: str, kind: str) -> str:
    number = "CAST(NULL AS DOUBLE)"
    if family in ("text", "number", "bool"):
        number = f"TRY_CAST({column} AS DOUBLE)"
    finite = f"CASE WHEN isfinite({number}) THEN {number} END"
    moment = f"epoch_us(TRY_CAST({column} AS TIMESTAMPTZ)) / 1e6"
    match kind, family:
        case ("string" | "id", "text"):
            return column
        case ("string", "number" | "bool" | "time"):
            return f"CAST({column} AS VARCHAR)"
        case ("id", "number"):
            # A column of integers with a gap arrives from pandas as floats: 12.0 is the id "12".
            fits = f"{column} = trunc({column}) AND {column} > {-(2.0**127)}"
            return f"CASE WHEN {fits} THEN CAST(TRY_CAST({column} AS HUGEINT) AS VARCHAR) END"
        case ("int", "text" | "number" | "bool"):
            return f"CASE WHEN {number} = trunc({number}) THEN TRY_CAST({column} AS BIGINT) END"
        case ("float" | "value", _) | ("time", "number"):
            return finite
        case ("time", "time"):
            return moment
        case ("time", "text"):
            return f"CASE WHEN {number} IS NULL THEN {moment} ELSE {finite} END"
        case ("bool", "bool"):
            return column
        case ("bool", "number"):
            return f"CASE {column} WHEN 1 THEN true WHEN 0 THEN false END"
        case ("bool", "text"):
            word = f"lower(trim({column}))"
            return f"CASE WHEN {word} IN {_TRUE} THEN true WHEN {word} IN {_FALSE} THEN false END"
        case ("list<string>", "text"):
            divided = f"string_split({column}, {literal(LIST_SEPARATOR)})"
            members = rf"list_transform({divided}, lambda m: trim(m, E' \t\r\n'))"
            printed = f"regexp_matches({column}, {literal(_PRINTED_LIST)}, 's')"
            return (
                f"CASE WHEN NOT {printed} AND NOT list_contains({members}, '') THEN {members} END"
            )
        case ("list<string>", "list"):
            members = f"CAST({column} AS VARCHAR[])"
            whole = f"len(list_filter({members}, lambda m: m <> '')) = len({members})"
            return f"CASE WHEN {whole} THEN {members} END"
    return f"CAST(NULL AS {SQL_TYPES[kind]})"
