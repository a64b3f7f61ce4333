import datetime
import decimal
import math
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.data.columns import ARROW_TYPES, convert
from m6rec_jax.data.values import LAST_TIME


def good(column, kind):
    """Values of a column that must convert without complaint."""
    values, bad = convert(column, kind)
    assert bad == []
    assert values.type == ARROW_TYPES[kind]
    return values.to_pylist()


def text(*values):
    return pa.array([None if value is None else value.encode() for value in values], pa.binary())


def test_numbers_from_text_and_from_other_types():
    assert good(text("1", " 2 ", None, "-3"), "int") == [1, 2, None, -3]
    assert good(text("1995.0", "7"), "int") == [1995, 7]
    assert good(pa.array([1995.0, math.nan]), "int") == [1995, None]
    assert good(pa.array([2**63 - 1], pa.uint64()), "int") == [2**63 - 1]
    assert good(text("1e3", "2.5", ""), "float") == [1000.0, 2.5, None]
    assert good(pa.array([decimal.Decimal("1.5")]), "float") == [1.5]
    assert good(pa.array([math.nan, 1.0]), "float") == [None, 1.0]
    assert good(pa.array(["7", "8"]).dictionary_encode(), "int") == [7, 8]
    assert good(pa.nulls(2), "int") == [None, None]


def test_text_bools_and_ids():
    assert good(text("true", "No", "1", None), "bool") == [True, False, True, None]
    assert good(pa.array([True, False]), "bool") == [True, False]
    assert good(text("NA", "null", ""), "string") == ["NA", "null", None]
    assert good(pa.array([3, 4]), "string") == ["3", "4"]
    assert good(text("0042", "x "), "id") == ["0042", "x "]
    assert good(pa.array([7, None]), "id") == ["7", None]
    # pandas writes integers with a gap as floats.
    assert good(pa.array([7.0, math.nan]), "id") == ["7", None]
    assert good(pa.array(["a"], pa.large_string()), "id") == ["a"]
    assert good(pa.array(["a"], pa.string_view()), "string") == ["a"]
    assert good(pa.array([1.5, math.nan]), "string") == ["1.5", None]
    # As pandas writes bools with a gap, and warehouses whole numbers.
    assert good(pa.array([1.0, 0.0, math.nan]), "bool") == [True, False, None]
    whole = pa.array([decimal.Decimal(7), None], pa.decimal128(38, 0))
    assert good(whole, "id") == ["7", None]
    assert good(pa.array([decimal.Decimal("7.00")]), "id") == ["7"]


def test_lists():
    assert good(text("a|b", "c", None), "list<string>") == [["a", "b"], ["c"], None]
    assert good(text(" a | b c "), "list<string>") == [["a", "b c"]]
    column = pa.array([["a"], [], None], pa.large_list(pa.string()))
    assert good(column, "list<string>") == [["a"], [], None]
    assert good(pa.array([[1, 2]]), "list<string>") == [["1", "2"]]
    # A film of this name is a title in brackets, not a printed list.
    assert good(text("[REC]"), "list<string>") == [["[REC]"]]


def test_blanks_in_a_list_take_no_quadratic_time():
    began = time.monotonic()
    for odd in ("[" + " " * 100_000 + "x", "['" + " ' " * 30_000 + "x"):
        good(text(odd), "list<string>")
    assert time.monotonic() - began < 5  # some ms; else minutes


def test_times_of_every_kind_mean_the_same_second():
    moment = datetime.datetime(1997, 12, 4, 15, 55, 49, tzinfo=datetime.UTC)
    expected = [moment.timestamp()]
    naive = moment.replace(tzinfo=None)
    columns = [
        text("881250949"),
        text("881250949.0"),
        text("1997-12-04T15:55:49Z"),
        text("1997-12-04 15:55:49"),
        text("1997-12-04T17:55:49+02:00"),
        pa.array([881250949]),
        pa.array([881250949.0]),
        pa.array([naive], pa.timestamp("ns")),
        pa.array([naive], pa.timestamp("s")),
        pa.array([moment], pa.timestamp("us", tz="Europe/Lisbon")),
    ]
    for column in columns:
        assert good(column, "time") == expected
    nanoseconds = pa.array([1_500_000_123], pa.timestamp("ns"))  # as of seconds as floats
    assert good(nanoseconds, "time") == [1.5]
    assert good(text("1970-01-02"), "time") == [86400.0]
    assert good(pa.array([datetime.date(1970, 1, 2)]), "time") == [86400.0]
    assert good(text("1970-01-01T00:00:00.25"), "time") == [0.25]


@pytest.mark.parametrize(
    "never",
    [
        pa.array([datetime.date(2024, 1, 1), datetime.date(9999, 12, 31)]),
        pa.array([datetime.datetime(2024, 1, 1), datetime.datetime(9999, 12, 31)]),
        pa.array([1_704_067_200, 10**13], pa.timestamp("s")),  # the year 300,000 and more
        pa.array([1_704_067_200_000, 10**16], pa.timestamp("ms")),
        pa.array([1_704_067_200_000_000, 10**18], pa.timestamp("us", "UTC")),
        pa.array([19_723, 2**30], pa.date32()),
    ],
)
def test_a_date_of_never_is_out_of_range_by_itself(never):
    first, late = good(never, "time")
    assert first == 1_704_067_200
    assert late > LAST_TIME


def test_a_date_without_dashes_is_no_time():
    for column in (text("20240131", None, "20231201"), pa.array([20240131, None, 20231201])):
        values, bad = convert(column, "time")
        assert values.to_pylist() == [None] * 3
        assert [(value.offset, value.kind) for value in bad] == [(0, "bad_time"), (2, "bad_time")]
        assert bad[0].reason.startswith("20240131 looks like a date")
        assert bad[0].reason.endswith("write 2024-01-31")
    # Of the same size, but no dates, or not dates alone, as of a clock of one's own.
    assert good(text("20241301", "20240131.5"), "time") == [20241301.0, 20240131.5]
    assert good(pa.array([20240131, 20240132]), "time") == [20240131.0, 20240132.0]
    assert good(pa.array([datetime.datetime(1970, 8, 23, 6, 15, 31)]), "time") == [20240131.0]
    assert good(pa.nulls(2), "time") == [None, None]


@pytest.mark.parametrize(
    ("column", "kind", "problem", "reason"),
    [
        (text("1", "0x1F"), "int", "wrong_type", "'0x1F' is not a whole number"),
        (pa.array([0.0, 2.0]), "bool", "wrong_type", "2.0 is not true or false"),
        (
            pa.array([decimal.Decimal(1), decimal.Decimal("1.5")]),
            "id",
            "wrong_type",
            "is not an id",
        ),
        (text("1", "x1"), "int", "wrong_type", "'x1' is not a whole number"),
        (text("1", "1.5"), "int", "wrong_type", "'1.5' is not a whole number"),
        (text("1", "1_000"), "int", "wrong_type", "'1_000' is not a whole number"),
        (text("1", str(2**63)), "int", "wrong_type", "does not fit in 64 bits"),
        # Python reads it, and no float is as large.
        (text("1", "9" * 400), "int", "wrong_type", "does not fit in 64 bits"),
        (text("1", "inf"), "int", "wrong_type", "'inf' is not a whole number"),
        (pa.array([1.0, 1.5]), "int", "wrong_type", "1.5 is not a whole number"),
        (text("1", "inf"), "float", "wrong_type", "is infinite"),
        (text("1", "a lot"), "float", "wrong_type", "'a lot' is not a number"),
        (text("1", "maybe"), "bool", "wrong_type", "'maybe' is not true or false"),
        (pa.array([1.0, 1.5]), "id", "wrong_type", "1.5 is not an id"),
        (pa.array([None, ["a"]]), "string", "wrong_type", "['a'] is not a string"),
        (text("a", "a||b"), "list<string>", "bad_list", "has an empty member"),
        (text("a", "['a', 'b']"), "list<string>", "bad_list", "is a printed list"),
        (text("a", "[]"), "list<string>", "bad_list", "is a printed list"),
        (pa.array([["a"], [None]]), "list<string>", "bad_list", "not a string"),
        (pa.array([None, {"a": 1}]), "list<string>", "bad_list", "is not a list"),
        (text("1", "yesterday"), "time", "bad_time", "neither unix seconds nor an ISO 8601"),
        (text("1", "nan"), "time", "bad_time", "is not a time"),
        (pa.array([1.0, math.inf]), "time", "bad_time", "is not a time"),
        (pa.array([1.0, math.nan]), "value", "nan", "NaN"),
        (text("1", "nan"), "value", "nan", "NaN"),
        (pa.array([b"a", b"caf\xe9"]), "string", "invalid_utf8", "byte 0xe9 at offset 3"),
        (pa.array([b"1", b"\xff"]), "int", "invalid_utf8", "byte 0xff at offset 0"),
        (pa.array([[b"a"], [b"\xff"]]), "list<string>", "invalid_utf8", "invalid UTF-8"),
    ],
)
def test_bad_values_become_null_and_are_told(column, kind, problem, reason):
    values, bad = convert(column, kind)
    assert [(value.offset, value.kind) for value in bad] == [(1, problem)]
    assert reason in bad[0].reason
    assert values[1].as_py() is None
    assert values.type == ARROW_TYPES[kind]


def test_invalid_utf8_inside_a_parquet_string_column_is_found():
    raw = pa.array([b"ok", b"caf\xe9"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    values, bad = convert(column, "string")
    assert values.to_pylist() == ["ok", None]
    assert bad[0].kind == "invalid_utf8"


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=8))
def test_text_survives_unchanged(values):
    column = pa.array([value.encode() for value in values], pa.binary())
    assert good(column, "string") == [value or None for value in values]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=12)), max_size=8))
def test_no_bytes_can_make_a_conversion_raise(values):
    column = pa.array(values, pa.binary())
    for kind in ARROW_TYPES:
        converted, bad = convert(column, kind)
        assert len(converted) == len(values)
        assert all(converted[value.offset].as_py() is None for value in bad)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8),
    st.integers(-(2**63), 2**63 - 1),
)
def test_numbers_agree_with_python(numbers, integer):
    assert good(text(*map(repr, numbers)), "float") == numbers
    assert good(text(str(integer)), "int") == [integer]
