"""Values of Arrow columns as Python objects, and what is said of those that fit no type."""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class BadValue:
    """A value that does not fit: its offset in the array, the kind of problem, and why.

    `kind` is `invalid_utf8`, `wrong_type`, `bad_list`, `bad_time` or `nan`.
    """

    offset: int
    kind: str
    reason: str


class UnfitValue(Exception):
    """A value does not fit its type; `kind` and `reason` as in `BadValue`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


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
    else:
        column = without_nanoseconds(column)
    return [_python_value(value) for value in column]


def without_nanoseconds(column: pa.Array) -> pa.Array:
    """Times as fine as Python's are, which refuses finer ones; other columns as they are."""
    kind = column.type
    if getattr(kind, "unit", None) != "ns":
        return column
    if pa.types.is_timestamp(kind):
        coarser: pa.DataType = pa.timestamp("us", kind.tz)
    else:
        coarser = pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us")
    return column.cast(coarser, safe=False)


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(str(error))


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


def short_text(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_number(value: Any) -> float:
    """One number, also from text; raises ValueError or OverflowError where it is none."""
    if isinstance(value, str):
        if "_" in value:  # Python reads 1_000 as a number; nobody's table means that.
            raise ValueError(value)
        return float(value)
    if isinstance(value, bool | int | float | decimal.Decimal):
        return float(value)
    raise ValueError(value)


def fast_number(column: pa.Array) -> pa.Array | None:
    """Finite float64 `[n]` of a whole column; None where it has to be read row by row."""
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return None
    numbers = column.cast(pa.float64())
    finite = pc.all(pc.is_finite(numbers)).as_py()
    return numbers if finite in (True, None) else None
