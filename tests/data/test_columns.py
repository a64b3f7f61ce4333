import datetime
import decimal
import math
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.dataset.columns import KINDS, conversion
from m6rec_jax.data.dataset.values import LAST_TIME

DATABASE = duckdb.connect()


def converted(column: pa.Array, kind: str) -> tuple[list[Any], list[str | None]]:
    """Values of a column as a kind, and the texts of those that do not fit."""
    with DATABASE.cursor() as database:
        database.execute("SET TimeZone = 'UTC'")
        database.register("rows", pa.table({"x": column}))
        ((_, sql_type, *_),) = database.execute("DESCRIBE SELECT x FROM rows").fetchall()
        value, bad = conversion("x", sql_type, kind)
        found = database.execute(f"SELECT {value}, {bad} FROM rows").fetchall()
        database.execute(f"SELECT CAST({value} AS {KINDS[kind].sql_type}) FROM rows")
    return [value for value, _ in found], [text for _, text in found]


def good(column: pa.Array, kind: str) -> list[Any]:
    """Values of a column that must convert without complaint."""
    values, bad = converted(column, kind)
    assert bad == [None] * len(column)
    return values


def text(*values: str | None) -> pa.Array:
    return pa.array(values, pa.string())


def test_numbers_from_text_and_from_other_types() -> None:
    assert good(text("1", " 2 ", None, "-3"), "int") == [1, 2, None, -3]
    assert good(text("1995.0", "7"), "int") == [1995, 7]
    assert good(pa.array([1995.0, math.nan]), "int") == [1995, None]
    assert good(pa.array([2**63 - 1], pa.uint64()), "int") == [2**63 - 1]
    assert good(text("1e3", "2.5", ""), "float") == [1000.0, 2.5, None]
    assert good(pa.array([decimal.Decimal("1.5")]), "float") == [1.5]
    assert good(pa.array([math.nan, 1.0]), "float") == [None, 1.0]
    assert good(pa.array(["7", "8"]).dictionary_encode(), "int") == [7, 8]
    assert good(pa.nulls(2), "int") == [None, None]


def test_text_bools_and_ids() -> None:
    assert good(text("true", "No", "1", None), "bool") == [True, False, True, None]
    assert good(pa.array([True, False]), "bool") == [True, False]
    assert good(text("NA", "null", ""), "string") == ["NA", "null", None]
    assert good(pa.array([3, 4]), "string") == ["3", "4"]
    assert good(text("0042", "x "), "id") == ["0042", "x "]
    assert good(pa.array([7, None]), "id") == ["7", None]
    # pandas writes integers with a gap as floats.
    assert good(pa.array([7.0, math.nan]), "id") == ["7", None]
    assert good(pa.array([1.5, math.nan]), "string") == ["1.5", None]
    # As pandas writes bools with a gap, and warehouses whole numbers.
    assert good(pa.array([1.0, 0.0, math.nan]), "bool") == [True, False, None]
    whole = pa.array([decimal.Decimal(7), None], pa.decimal128(38, 0))
    assert good(whole, "id") == ["7", None]
    assert good(pa.array([decimal.Decimal("7.00")]), "id") == ["7"]


def test_lists() -> None:
    assert good(text("a|b", "c", None), "list<string>") == [["a", "b"], ["c"], None]
    assert good(text(" a | b c "), "list<string>") == [["a", "b c"]]
    column = pa.array([["a"], [], None], pa.large_list(pa.string()))
    assert good(column, "list<string>") == [["a"], [], None]
    assert good(pa.array([[1, 2]]), "list<string>") == [["1", "2"]]
    # A film of this name is a title in brackets, not a printed list.
    assert good(text("[REC]"), "list<string>") == [["[REC]"]]


def test_times_of_every_kind_mean_the_same_second() -> None:
    moment = datetime.datetime(1997, 12, 4, 15, 55, 49, tzinfo=datetime.UTC)
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
        assert good(column, "time") == [moment.timestamp()]
    nanoseconds = pa.array([1_500_000_123], pa.timestamp("ns"))  # as of seconds as floats
    assert good(nanoseconds, "time") == [1.5]
    assert good(text("1970-01-02"), "time") == [86400.0]
    assert good(pa.array([datetime.date(1970, 1, 2)]), "time") == [86400.0]
    assert good(text("1970-01-01T00:00:00.25"), "time") == [0.25]
    # The date of "never" is out of range by itself.
    first, late = good(pa.array([datetime.date(2024, 1, 1), datetime.date(9999, 12, 31)]), "time")
    assert first == 1_704_067_200
    assert late > LAST_TIME


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([0.0, 2.0]), "bool"),
        (pa.array([decimal.Decimal(1), decimal.Decimal("1.5")]), "id"),
        (text("1", "0x1F"), "int"),
        (text("1", "x1"), "int"),
        (text("1", "1.5"), "int"),
        (text("1", str(2**63)), "int"),
        (text("1", "9" * 400), "int"),
        (text("1", "inf"), "int"),
        (pa.array([1.0, 1.5]), "int"),
        (text("1", "inf"), "float"),
        (text("1", "a lot"), "float"),
        (text("1", "maybe"), "bool"),
        (pa.array([1.0, 1.5]), "id"),
        (pa.array([None, ["a"]]), "string"),
        (text("a", "a||b"), "list<string>"),
        (text("a", "['a', 'b']"), "list<string>"),
        (text("a", "[]"), "list<string>"),
        (pa.array([["a"], [None]]), "list<string>"),
        (pa.array([None, {"a": 1}]), "list<string>"),
        (text("1", "yesterday"), "time"),
        (text("1", "nan"), "time"),
        (text("1", "infinity"), "time"),
        (pa.array([1.0, math.inf]), "time"),
        (pa.array([1.0, math.nan]), "value"),
        (text("1", "nan"), "value"),
    ],
)
def test_bad_values_become_null_and_are_told(column: pa.Array, kind: str) -> None:
    values, bad = converted(column, kind)
    assert values[1] is None
    assert bad[0] is None
    assert bad[1] is not None


@settings(max_examples=40)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=8))
def test_no_text_can_make_a_conversion_raise(values: list[str]) -> None:
    for kind in KINDS:
        found, _ = converted(text(*values), kind)
        assert len(found) == len(values)
        if kind == "string":
            assert found == [value or None for value in values]
