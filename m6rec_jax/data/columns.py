"""Conversion of a raw column (from CSV bytes or any Parquet type) to its declared type.

The strict reader stops at the first bad value and the checker collects all of them, so `convert`
never raises: it returns the values that fit, null in place of the others, and the list of those.
"""

from __future__ import annotations

import contextlib
import decimal
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data.schema import ID, LIST_SEPARATOR, TIME, VALUE
from m6rec_jax.data.values import (
    BadValue,
    UnfitValue,
    Unreadable,
    fast_number,
    fast_time,
    is_text,
    parse_number,
    parse_time,
    python_values,
    short_text,
    without_plain_dates,
)

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


def arrow_schema(kinds: Mapping[str, str]) -> pa.Schema:
    """The schema of columns, from the kind of each."""
    return pa.schema([(name, ARROW_TYPES[kind]) for name, kind in kinds.items()])


# An ArrowNotImplementedError is pyarrow's word for a cast that it does not have.
_NO_FAST_WAY = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError, ValueError)
# No two blanks beside each other: they would take quadratic time.
_PRINTED_LIST = re.compile(r"^\[\s*(?:['\"].*['\"]\s*)?\]$", re.DOTALL)
_TRUE = frozenset(("true", "yes", "1", "t", "y"))
_FALSE = frozenset(("false", "no", "0", "f", "n"))


def convert(column: pa.Array, kind: str) -> tuple[pa.Array, list[BadValue]]:
    """Converts `column` `[n]` to `ARROW_TYPES[kind]`.

    Empty strings are missing values (null), in Parquet as in CSV. A list is written with `|` in
    text. Times may be numbers (unix seconds), ISO 8601 text, or Arrow timestamps and dates; a time
    without a zone is UTC. Null is never bad here: whether a column may be null is the caller's
    business.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), ARROW_TYPES[kind]), []
    bad: list[BadValue] = []
    if is_text(column.type):
        column, bad = decode_text(column)
        if kind in ("string", ID):
            return column, bad
    converted: pa.Array | None = None
    if (fast := _FAST.get(kind)) is not None:
        # A value that does not fit, or types between which pyarrow has no cast: values are then
        # converted one by one, bad ones reported.
        with contextlib.suppress(*_NO_FAST_WAY):
            converted = fast(column)
    if converted is None:
        converted, more = _convert_rows(column, kind)
        bad = bad + more
    return without_plain_dates(column, converted, bad) if kind == TIME else (converted, bad)


def decode_text(column: pa.Array) -> tuple[pa.Array, list[BadValue]]:
    """Strings of a column of bytes or strings, with empty strings and invalid UTF-8 as null.

    Parquet strings are checked too: Arrow does not look at them when it reads the file.
    """
    raw = column.cast(pa.large_binary()) if column.type != pa.binary() else column
    bad: list[BadValue] = []
    try:
        text = raw.cast(pa.string())
    except pa.ArrowInvalid:
        decoded: list[str | None] = []
        for offset, value in enumerate(raw.to_pylist()):
            try:
                decoded.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError as error:
                decoded.append(None)
                reason = (
                    f"invalid UTF-8: byte 0x{value[error.start]:02x} at offset {error.start} "
                    f"of {short_text(value)}"
                )
                bad.append(BadValue(offset, "invalid_utf8", reason))
        text = pa.array(decoded, pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text), bad


# ---- whole columns at once: the usual case. Returning None hands over to the row-wise code.


def _fast_int(column: pa.Array) -> pa.Array | None:
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        if pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
            return None  # Arrow reads 0x1F, and nobody's table means that
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return None
    return column.cast(pa.int64())


def _fast_bool(column: pa.Array) -> pa.Array | None:
    return column if pa.types.is_boolean(column.type) else None


def _fast_plain_text(column: pa.Array) -> pa.Array | None:
    if pa.types.is_nested(column.type):
        return None
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column.cast(pa.string())


def _fast_id(column: pa.Array) -> pa.Array | None:
    # A column of integers with a gap arrives from pandas as floats: 12.0 is the id "12".
    if pa.types.is_floating(column.type):
        column = column.cast(pa.int64())
    # Warehouses have decimals without digits after the point where others have integers.
    whole = pa.types.is_integer(column.type) or (
        pa.types.is_decimal(column.type) and column.type.scale == 0
    )
    return column.cast(pa.string()) if whole else None


_FAST: dict[str, Callable[[pa.Array], pa.Array | None]] = {
    "string": _fast_plain_text,
    "int": _fast_int,
    "float": fast_number,
    "bool": _fast_bool,
    ID: _fast_id,
    TIME: fast_time,
    VALUE: fast_number,
}


# ---- row by row: finds which values are bad, and reads the spellings the fast code does not know.


def parse_value(value: Any, kind: str) -> Any:
    """One value, where there is no column: of a request, read from JSON or Parquet.

    As strict as these formats allow: numbers may be written as text, as in CSV, but true and false
    are no numbers. Lists become tuples. Missing values are None, as in `convert`.

    Args:
      value: as `json` or Arrow's `to_pylist` gives it.
      kind: of `ARROW_TYPES`.

    Raises:
      UnfitValue: it does not fit. NaN fits nothing: a value that is not known is null.
    """
    if value is None or value == "":
        return None
    if isinstance(value, float) and value != value:
        raise UnfitValue("nan", "the value is NaN; write null where it is not known")
    if isinstance(value, bool) and kind != "bool":
        raise UnfitValue("wrong_type", f"{value!r} is neither a text nor a number")
    if kind in ("string", ID):
        if isinstance(value, str | int):
            return str(value)
        return _PARSERS[kind](value)
    if kind == "list<string>":
        return tuple(_parse_list(value))
    return _PARSERS[kind](value)


def _convert_rows(column: pa.Array, kind: str) -> tuple[pa.Array, list[BadValue]]:
    parse = _PARSERS[kind]
    values: list[Any] = []
    bad: list[BadValue] = []
    for offset, value in enumerate(python_values(column)):
        try:
            if isinstance(value, Unreadable):
                raise UnfitValue("wrong_type", f"a value cannot be read: {value.reason}")
            values.append(None if value is None else parse(value))
        except UnfitValue as error:
            values.append(None)
            bad.append(BadValue(offset, error.kind, error.reason))
    return pa.array(values, ARROW_TYPES[kind]), bad


def _parse_int(value: Any) -> int | None:
    whole = isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value, re.ASCII)
    try:
        # Python refuses to read thousands of digits.
        number: float = int(value) if whole or isinstance(value, int) else parse_number(value)
    except (ValueError, OverflowError):
        raise UnfitValue("wrong_type", f"{short_text(value)} is not a whole number") from None
    if number != number:  # how pandas writes a missing integer
        return None
    if isinstance(number, float) and not number.is_integer():
        raise UnfitValue("wrong_type", f"{short_text(value)} is not a whole number")
    if not -(2**63) <= int(number) < 2**63:
        raise UnfitValue("wrong_type", f"{short_text(value)} does not fit in 64 bits")
    return int(number)


def _parse_float(value: Any) -> float | None:
    try:
        number = parse_number(value)
    except (ValueError, OverflowError):
        raise UnfitValue("wrong_type", f"{short_text(value)} is not a number") from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise UnfitValue("wrong_type", f"{short_text(value)} is infinite")
    return number


def _parse_value(value: Any) -> float | None:
    number = _parse_float(value)
    if number is None:
        raise UnfitValue("nan", "the value is NaN")
    return number


def _parse_bool(value: Any) -> bool | None:
    if isinstance(value, float):
        if math.isnan(value):  # how pandas writes a missing one
            return None
        if value in (0.0, 1.0):
            return bool(value)
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise UnfitValue("wrong_type", f"{short_text(value)} is not true or false")


def _parse_id(value: Any) -> str | None:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, decimal.Decimal) and value.is_finite() and value == int(value):
        return str(int(value))
    raise UnfitValue(
        "wrong_type", f"{short_text(value)} is not an id: ids are strings or whole numbers"
    )


def _parse_string(value: Any) -> str:
    raise UnfitValue("wrong_type", f"{short_text(value)} is not a string")


def _parse_list(value: Any) -> list[str]:
    if isinstance(value, str):
        if _PRINTED_LIST.match(value.strip()):
            raise UnfitValue(
                "bad_list",
                f"{short_text(value)} is a printed list: write its members with "
                f"{LIST_SEPARATOR!r} between them, without brackets or quotes",
            )
        members: list[Any] = [member.strip() for member in value.split(LIST_SEPARATOR)]
    elif isinstance(value, list):
        members = value
    else:
        raise UnfitValue("bad_list", f"{short_text(value)} is not a list")
    parsed = []
    for member in members:
        if isinstance(member, bytes):
            try:
                member = member.decode("utf-8")
            except UnicodeDecodeError:
                raise UnfitValue("invalid_utf8", f"invalid UTF-8 in {short_text(value)}") from None
        if isinstance(member, int | float) and not isinstance(member, bool):
            member = str(member)
        if not isinstance(member, str):
            raise UnfitValue("bad_list", f"{short_text(value)} has a member that is not a string")
        if not member:
            raise UnfitValue("bad_list", f"{short_text(value)} has an empty member")
        parsed.append(member)
    return parsed


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "string": _parse_string,
    "int": _parse_int,
    "float": _parse_float,
    "bool": _parse_bool,
    "list<string>": _parse_list,
    ID: _parse_id,
    TIME: parse_time,
    VALUE: _parse_value,
}
