"""Conversion of a raw column (from CSV bytes or any Parquet type) to its declared type.

The strict reader stops at the first bad value and the checker collects all of them, so `convert`
never raises: it returns the values that fit, null in place of the others, and the list of those.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.tables.schema import LIST_SEPARATOR

# Beyond the column types of the schema: an id, a time in unix seconds, the value of an event.
ID, TIME, VALUE = "id", "time", "value"

# What times can be: 1970 to 2100. Milliseconds of any year after 1973 lie above.
FIRST_TIME, LAST_TIME = 0.0, 4_102_444_800.0

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

# Dates without dashes, as numbers: seconds of three weeks of 1970.
_FIRST_PLAIN_DATE, _LAST_PLAIN_DATE = 19_000_101, 20_991_231

_PRINTED_LIST = re.compile(r"^\[\s*(['\"].*['\"])?\s*\]$", re.DOTALL)
_TRUE = frozenset(("true", "yes", "1", "t", "y"))
_FALSE = frozenset(("false", "no", "0", "f", "n"))


@dataclass(frozen=True, slots=True)
class BadValue:
    """A value that does not fit: its offset in the array, the kind of problem, and why.

    `kind` is `invalid_utf8`, `wrong_type`, `bad_list`, `bad_time` or `nan`.
    """

    offset: int
    kind: str
    reason: str


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
    fast = _FAST.get(kind)
    if fast is not None:
        try:
            converted = fast(column)
        # A value that does not fit, or types between which pyarrow has no cast: values are then
        # converted one by one, bad ones reported.
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError, ValueError):
            converted = None
        if converted is not None:
            return (
                (converted, bad) if kind != TIME else _without_plain_dates(column, converted, bad)
            )
    slow, more = _convert_rows(column, kind)
    if kind == TIME:
        return _without_plain_dates(column, slow, bad + more)
    return slow, bad + more


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings or raw bytes."""
    checks = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)


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
                    f"of {_short(value)}"
                )
                bad.append(BadValue(offset, "invalid_utf8", reason))
        text = pa.array(decoded, pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text), bad


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- whole columns at once: the usual case. Returning None hands over to the row-wise code.


def _fast_number(column: pa.Array) -> pa.Array | None:
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return None
    numbers = column.cast(pa.float64())
    finite = pc.all(pc.is_finite(numbers)).as_py()
    return numbers if finite in (True, None) else None


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


def _fast_time(column: pa.Array) -> pa.Array | None:
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        # From the integers themselves: a year that Python or a finer unit cannot hold, such as the
        # 9999 of "never", is out of range by itself, and no reason to read the others otherwise.
        kind = column.type
        if pa.types.is_date(kind):
            column = column.cast(pa.timestamp("s") if kind == pa.date32() else pa.timestamp("ms"))
        units = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e6}
        ticks = column.cast(pa.int64())
        if column.type.unit == "ns":
            # Digits below microseconds are cut off: seconds as float64 have no room for them.
            ticks = pc.divide(ticks, 1000)
        return pc.divide(ticks.cast(pa.float64(), safe=False), units[column.type.unit])
    return _fast_number(column)


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
    "float": _fast_number,
    "bool": _fast_bool,
    ID: _fast_id,
    TIME: _fast_time,
    VALUE: _fast_number,
}


# ---- row by row: finds which values are bad, and reads the spellings the fast code does not know.


class UnfitValue(Exception):
    """A value does not fit its type; `kind` and `reason` as in `BadValue`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


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


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a value that Arrow has and Python cannot hold."""

    reason: str


def python_values(column: pa.Array) -> list[Any]:
    """Values of a column as Python objects; none of them is a reason not to get the others.

    Arrow does not look whether texts are UTF-8, and Python knows neither nanoseconds nor the year
    20000. Where a column holds such values its texts are bytes, its times cut to microseconds.
    """
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        pass
    kind = column.type
    if is_text(kind):
        column = column.cast(pa.large_binary())
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and is_text(kind.value_type):
        column = column.cast(pa.large_list(pa.large_binary()))
    elif pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    return [_python_value(value) for value in column]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(str(error))


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


def _number(value: Any) -> float:
    if isinstance(value, str):
        if "_" in value:  # Python reads 1_000 as a number; nobody's table means that.
            raise ValueError(value)
        return float(value)
    if isinstance(value, bool | int | float) or type(value).__name__ == "Decimal":
        return float(value)
    raise ValueError(value)


def _parse_int(value: Any) -> int | None:
    whole = isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value, re.ASCII)
    try:
        # Python refuses to read thousands of digits.
        number: float = int(value) if whole or isinstance(value, int) else _number(value)
    except (ValueError, OverflowError):
        raise UnfitValue("wrong_type", f"{_short(value)} is not a whole number") from None
    if number != number:  # how pandas writes a missing integer
        return None
    if isinstance(number, float) and not number.is_integer():
        raise UnfitValue("wrong_type", f"{_short(value)} is not a whole number")
    if not -(2**63) <= int(number) < 2**63:
        raise UnfitValue("wrong_type", f"{_short(value)} does not fit in 64 bits")
    return int(number)


def _parse_float(value: Any) -> float | None:
    try:
        number = _number(value)
    except (ValueError, OverflowError):
        raise UnfitValue("wrong_type", f"{_short(value)} is not a number") from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise UnfitValue("wrong_type", f"{_short(value)} is infinite")
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
    raise UnfitValue("wrong_type", f"{_short(value)} is not true or false")


def _parse_time(value: Any) -> float:
    if isinstance(value, datetime.datetime):
        return _seconds(value)
    if isinstance(value, datetime.date):
        return _seconds(datetime.datetime.combine(value, datetime.time.min))
    if isinstance(value, str):
        try:
            number = _number(value)
        except ValueError:
            try:
                moment = datetime.datetime.fromisoformat(value.strip())
            except ValueError:
                raise UnfitValue(
                    "bad_time", f"{_short(value)} is neither unix seconds nor an ISO 8601 time"
                ) from None
            return _seconds(moment)
    else:
        try:
            number = _number(value)
        except (ValueError, OverflowError):
            raise UnfitValue("bad_time", f"{_short(value)} is not a time") from None
    if not math.isfinite(number):
        raise UnfitValue("bad_time", f"{_short(value)} is not a time")
    return number


def _without_plain_dates(
    column: pa.Array, seconds: pa.Array, bad: list[BadValue]
) -> tuple[pa.Array, list[BadValue]]:
    """Refuses times that are all dates without dashes, which would be of August 1970.

    Seconds of a clock of one's own may pass through these numbers, but hardly spell dates alone.
    """
    if pa.types.is_temporal(column.type):
        return seconds, bad
    ends = pc.min_max(seconds)
    if not (ends["min"].as_py() or 0) >= _FIRST_PLAIN_DATE:
        return seconds, bad
    if ends["max"].as_py() > _LAST_PLAIN_DATE:
        return seconds, bad
    dates = [None if second is None else _plain_date(second) for second in seconds.to_pylist()]
    if "" in dates:
        return seconds, bad
    told = [
        BadValue(
            offset,
            "bad_time",
            f"{date.replace('-', '')} looks like a date, and would be of August 1970 as unix "
            f"seconds; write {date}",
        )
        for offset, date in enumerate(dates)
        if date
    ]
    return pa.nulls(len(seconds), seconds.type), bad + told


def _plain_date(number: float) -> str:
    """'2024-01-31' for 20240131; "" for numbers that are no such date."""
    if not (_FIRST_PLAIN_DATE <= number <= _LAST_PLAIN_DATE and float(number).is_integer()):
        return ""
    try:
        return datetime.datetime.strptime(str(int(number)), "%Y%m%d").date().isoformat()
    except ValueError:
        return ""


def out_of_range(time: float) -> str:
    """What is wrong with a time that lies not between `FIRST_TIME` and `LAST_TIME`."""
    hint = "; milliseconds? divide by 1000" if time > LAST_TIME else ""
    return f"{time:g} is before 1970 or after 2100{hint}"


def _seconds(moment: datetime.datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def _parse_id(value: Any) -> str | None:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, decimal.Decimal) and value.is_finite() and value == int(value):
        return str(int(value))
    raise UnfitValue(
        "wrong_type", f"{_short(value)} is not an id: ids are strings or whole numbers"
    )


def _parse_string(value: Any) -> str:
    raise UnfitValue("wrong_type", f"{_short(value)} is not a string")


def _parse_list(value: Any) -> list[str]:
    if isinstance(value, str):
        if _PRINTED_LIST.match(value.strip()):
            raise UnfitValue(
                "bad_list",
                f"{_short(value)} is a printed list: write its members with "
                f"{LIST_SEPARATOR!r} between them, without brackets or quotes",
            )
        members: list[Any] = [member.strip() for member in value.split(LIST_SEPARATOR)]
    elif isinstance(value, list):
        members = value
    else:
        raise UnfitValue("bad_list", f"{_short(value)} is not a list")
    parsed = []
    for member in members:
        if isinstance(member, bytes):
            try:
                member = member.decode("utf-8")
            except UnicodeDecodeError:
                raise UnfitValue("invalid_utf8", f"invalid UTF-8 in {_short(value)}") from None
        if isinstance(member, int | float) and not isinstance(member, bool):
            member = str(member)
        if not isinstance(member, str):
            raise UnfitValue("bad_list", f"{_short(value)} has a member that is not a string")
        if not member:
            raise UnfitValue("bad_list", f"{_short(value)} has an empty member")
        parsed.append(member)
    return parsed


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "string": _parse_string,
    "int": _parse_int,
    "float": _parse_float,
    "bool": _parse_bool,
    "list<string>": _parse_list,
    ID: _parse_id,
    TIME: _parse_time,
    VALUE: _parse_value,
}
