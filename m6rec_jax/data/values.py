"""Values of Arrow columns as Python objects, and what is said of those that fit no type."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# How pandas and databases write what is missing, once it has become text: a whole value.
MISSING_WORD = r"^\s*((?i:nan|none|null|<na>|n/a)|NaT)\s*$"


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


# What times can be: 1970 to 2100. Milliseconds of any year after 1973 lie above.
FIRST_TIME, LAST_TIME = 0.0, 4_102_444_800.0

# Dates without dashes, as numbers: seconds of three weeks of 1970.
_FIRST_PLAIN_DATE, _LAST_PLAIN_DATE = 19_000_101, 20_991_231


def fast_time(column: pa.Array) -> pa.Array | None:
    """Unix seconds float64 `[n]` of a whole column; None where it has to be read row by row."""
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
    return fast_number(column)


def parse_time(value: Any) -> float:
    """Unix seconds of one value; raises UnfitValue where it is no time."""
    if isinstance(value, datetime.datetime):
        return _seconds(value)
    if isinstance(value, datetime.date):
        return _seconds(datetime.datetime.combine(value, datetime.time.min))
    if isinstance(value, str):
        try:
            number = parse_number(value)
        except ValueError:
            try:
                moment = datetime.datetime.fromisoformat(value.strip())
            except ValueError:
                raise UnfitValue(
                    "bad_time", f"{short_text(value)} is neither unix seconds nor an ISO 8601 time"
                ) from None
            return _seconds(moment)
    else:
        try:
            number = parse_number(value)
        except (ValueError, OverflowError):
            raise UnfitValue("bad_time", f"{short_text(value)} is not a time") from None
    if not math.isfinite(number):
        raise UnfitValue("bad_time", f"{short_text(value)} is not a time")
    return number


def without_plain_dates(
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
    dated = [
        BadValue(
            offset,
            "bad_time",
            f"{date.replace('-', '')} looks like a date, and would be of August 1970 as unix "
            f"seconds; write {date}",
        )
        for offset, date in enumerate(dates)
        if date
    ]
    return pa.nulls(len(seconds), seconds.type), bad + dated


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
    hint = ""
    for unit, number in (("milli", 1000), ("micro", 1_000_000), ("nano", 1_000_000_000)):
        if LAST_TIME < time <= LAST_TIME * number and not hint:
            hint = f"; {unit}seconds? divide by {number}"
    return f"{time:g} is before 1970 or after 2100{hint}"


def unknown_id_hint(id_: str, known: Container[str]) -> str:
    """What to say of an id that no table has: pandas writes whole numbers with a gap as floats.

    Args:
      id_: of an event.
      known: ids of the table, at least `<id_>.0`.
    """
    if f"{id_}.0" in known:
        return f" (there it was written as a float, {id_}.0? write {id_} there)"
    whole = id_.removesuffix(".0")
    return f" (a whole number that was written as a float? write {whole})" if whole != id_ else ""


def _seconds(moment: datetime.datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()
