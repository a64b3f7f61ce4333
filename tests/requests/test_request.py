"""Requests: what is accepted, what is refused and why; nothing else ever happens."""

import json
import math
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.requests.request import RejectedRow, RequestFields, RequestParser
from m6rec_jax.text.records import Event, Item, User

SPEC = DatasetSpec.from_dict(
    {
        "name": "films",
        "users": {"id": "who", "columns": {"age": "int", "student": "bool"}},
        "items": {
            "id": "sku",
            "columns": {"title": "string", "genres": "list<string>", "price": "float"},
        },
        "events": {"user": "who", "item": "sku", "time": "at", "value": "stars"},
        "label": {"at_least": 4},
    }
)
FARGO = Item("1", {"title": "Fargo", "genres": ("crime",), "price": 3.5})
CATALOGUE = {"1": FARGO, "2": Item("2", {"title": "Heat"})}
NAMES = ("item_count", "user_count")


def parser(**changes: Any) -> RequestParser:
    return RequestParser(SPEC, CATALOGUE, NAMES, **changes)


def request(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "user": {"id": "ana", "age": 31},
        "time": 2000,
        "history": [{"item": "1", "time": 1000, "value": 5}],
        "candidates": ["2"],
    }
    return {name: value for name, value in (row | changes).items() if value is not ...}


def test_ids_are_looked_up_and_own_columns_go_before() -> None:
    found = parser().parse(
        request(
            history=[
                {"item": 1, "time": "1970-01-01T00:10:00", "value": "4"},
                {"item": {"title": "New", "genres": ["a", "b"]}, "time": 600.0, "value": 1},
            ],
            candidates=[
                "2",
                {"id": "1", "price": 9, "statistics": {"item_count": "about 500"}},
                {"id": "new", "title": "Unseen", "genres": None},
            ],
            statistics={"user_count": 2, "item_count": None},  # null: as good as nothing
            k=3,
            exclude=["1", 7],
        )
    )
    assert found.user == User("ana", {"age": 31})
    assert found.time == 2000.0
    assert [event for event, _ in found.history] == [
        Event("ana", "1", 600.0, 4.0),
        Event("ana", "", 600.0, 1.0),
    ]
    assert [item for _, item in found.history] == [
        FARGO,
        Item("", {"title": "New", "genres": ("a", "b")}, "New"),
    ]
    assert found.candidates == (
        CATALOGUE["2"],
        Item("1", {**FARGO.attributes, "price": 9.0}),
        Item("new", {"title": "Unseen"}, "Unseen"),
    )
    assert found.candidate_statistics == ({}, {"item_count": "about 500"}, {})
    assert found.statistics == {"user_count": 2}
    assert (found.k, found.exclude) == (3, ("1", "7"))


def test_new_users_and_retrieval_need_less() -> None:
    found = parser(fields=RequestFields(None)).parse({"time": 5, "candidates": "anything"})
    assert (found.user, found.history, found.candidates) == (User(""), (), ())
    assert parser(fields=RequestFields("found")).parse(request(found=["1"])).candidates == (FARGO,)
    with pytest.raises(RejectedRow):  # a program's row may have what JSON has not
        parser().parse(request(candidates=[np.int64(1)]))


def history(*items, times=(1,) * 9):
    told = zip(items, times, strict=False)
    return {"history": [{"item": item, "time": time, "value": 1} for item, time in told]}


@pytest.mark.parametrize(
    ("change", "kind", "where"),
    [
        *(({"time": t}, "bad_time", "time") for t in ("noon", "1700000000000", 1_700_000_000_000)),
        ({"time": 999}, "time_out_of_order", "history[0].time"),
        ({"user": "ana"}, "wrong_type", "user"),
        *(({"user": {"age": a}}, "wrong_type", "user.age") for a in ("old", float("nan"))),
        ({"history": ["1"]}, "wrong_type", "history[0]"),
        ({"history": [{"time": 1, "value": 1}]}, "missing_field", "history[0].item"),
        (history("1", "1", times=(20, 10)), "time_out_of_order", "history[1].time"),
        ({"candidates": ...}, "missing_field", "candidates"),
        ({"candidates": ["1", "7"]}, "unknown_item", "candidates[1]"),
        ({"candidates": [{}]}, "missing_field", "candidates[0]"),
        ({"candidates": [{"title": "x", "genres": "['a']"}]}, "wrong_type", "candidates[0].genres"),
        ({"candidates": [{"title": "x", "price": 1e999}]}, "wrong_type", "candidates[0].price"),
        ({"k": 0}, "wrong_type", "k"),
        # They are rendered with every candidate.
        ({"statistics": {"user_count": ["ab"] * 501}}, "wrong_type", "statistics.user_count"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], kind: str, where: str) -> None:
    with pytest.raises(RejectedRow) as caught:
        parser().parse(request(**change))
    assert caught.value.kind == kind
    assert f"'{where}'" in str(caught.value)


def test_what_is_not_known_is_left_out_and_named() -> None:
    told = [{"item": item, "time": 1, "value": 1} for item in ("9", "1", {"id": "8"})]
    found = parser().parse(request(history=told))
    assert [item for _, item in found.history] == [FARGO]
    assert (found.unknown, found.gaps) == (("9", "8"), ["unknown_items"])
    assert parser().parse(request(history=told[:1])).gaps == ["unknown_items", "no_history"]
    for history in (..., None, []):
        found = parser().parse(request(history=history))
        assert (found.history, found.gaps) == ((), ["no_history"])
    assert parser().parse(request(history=told[1:2])).gaps == []


def test_times_and_values_may_be_missing() -> None:
    told = [{"item": "1", "time": 20}, {"item": "1", "value": 1}, {"item": "2", "time": 30}]
    found = parser().parse(request(time=..., history=told))
    events = [event for event, _ in found.history]
    assert found.time is None
    assert [event.value for event in events] == [None, 1.0, None]
    assert [math.isnan(event.time) for event in events] == [False, True, False]
    # What is known must still fit together.
    told[2]["time"] = 10
    with pytest.raises(RejectedRow):
        parser().parse(request(history=told))


def test_texts_stand_for_users_and_items_that_are_nothing_else() -> None:
    raw = SPEC.to_dict()
    for table in ("users", "items"):
        raw[table]["columns"] = {"text": "string"}
    fargo = Item("Fargo", {"text": "Fargo"})
    texts = RequestParser(DatasetSpec.from_dict(raw), {"Fargo": fargo})
    history, candidates = ["Heat", {"item": "Fargo"}], ["Up", "Fargo"]
    row = request(user="Ana", history=history, candidates=candidates, time=...)
    found = texts.parse(row)
    assert found.user == User("", {"text": "Ana"})
    assert [item for _, item in found.history] == [Item("", {"text": "Heat"}), fargo]
    assert found.candidates == (Item("", {"text": "Up"}), fargo)
    # An id that is not known is none of a catalogue with ids of its own, and no text.
    by_id = RequestParser(DatasetSpec.from_dict(raw), {"1": Item("1", {"text": "Fargo"})})
    with pytest.raises(RejectedRow):
        by_id.parse(request(user="Ana", history=[], candidates=["2", "1"], time=...))


def test_what_a_title_is_about_is_read_where_it_is_asked_for() -> None:
    row = request(about={"genres": ["crime"], "prize": 1})
    assert parser().parse(row).about is None
    asking = parser(fields=RequestFields(about="about"))
    assert asking.parse(row).about == Item("", {"genres": ("crime",)})
    assert asking.parse(row).ignored == {"about.prize"}
    assert asking.parse(request(about="1")).about == FARGO
    assert asking.parse(request()).about is None
    with pytest.raises(RejectedRow):
        asking.parse(request(about="9"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(string.printable, max_size=5)
    | st.sampled_from(
        ["1", "2", "1999-01-01", "nan", "9" * 400, "9" * 5000, 10**400, 1e308, "\ud800"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*"abc", "id", "item", "time", "value", "title", "genres", "age"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(["user", "time", "history", "candidates", "k", "exclude", "statistics"]),
        JSON,
    ),
    st.booleans(),
)
def test_any_row_is_a_request_or_refused(row: dict[str, Any], whole: bool) -> None:
    """Whatever stands in a row, parsing gives a request or a reason that can be written down."""
    try:
        parser().parse(request(**row) if whole else row)
    except RejectedRow as problem:
        json.dumps([problem.kind, str(problem)], ensure_ascii=False).encode()
