"""What a served model reads is what training would have rendered, to the letter."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.splitting import negatives
from m6rec_jax.data.splitting.event_table import Assignment
from m6rec_jax.data.splitting.splits import TEST, TRAIN, Split
from m6rec_jax.data.store.manifest import MANIFEST
from m6rec_jax.data.store.prepared import STATISTICS, write_catalogue
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RejectedRow, RequestParser
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.text.records import Event, Item
from m6rec_jax.text.templates import DatasetTemplate
from tests.data.fold import FoldedStatistics, ViewFold
from tests.data.plain_splits import plain_split

NUM_USERS, NUM_ITEMS, MAX_EVENTS = 4, 10, 4
Events = list[tuple[int, int, float, float]]


@st.composite
def logs(draw: st.DrawFn) -> Events:
    """Events of different moments, so that a later part lies after all of the earlier ones."""
    number = draw(st.integers(12, 40))
    user, item = st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1)
    pairs = draw(st.lists(st.tuples(user, item), min_size=number, max_size=number))
    values = draw(st.lists(st.integers(1, 5), min_size=number, max_size=number))
    return [
        (*pair, 3600.0 * n, float(value))
        for n, (pair, value) in enumerate(zip(pairs, values, strict=True))
    ]


def save(folder: Path, dataset: Dataset, statistics: FoldedStatistics) -> Path:
    """What `prepare` leaves for serving."""
    out = folder / "serving"
    out.mkdir(exist_ok=True)
    statistics.save(out / STATISTICS)
    items, number = dataset.item_records, len(dataset.item_records)
    attributes = dataset.items.select(list(dataset.spec.items.columns))
    held_out, counts = np.zeros(number, bool), np.zeros(number, np.int64)
    write_catalogue(out / "catalogue.parquet", items, attributes, [""] * number, held_out, counts)
    (out / MANIFEST).write_text(json.dumps({"dataset": dataset.spec.name}))
    return out


@pytest.fixture(autouse=True)
def nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "NEGATIVES", 0)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs(), labelled=st.booleans(), known=st.booleans(), own_fields=st.booleans())
def test_served_text_is_training_text(write_shop, tmp_path, log, labelled, known, own_fields):
    """Test rows of a split by time, rendered by `prepare`, and asked for after training ended.

    A known user sends what came later; one that is not looked up sends everything.
    """
    folder = write_shop(
        log, num_users=NUM_USERS, num_items=NUM_ITEMS, labelled=labelled, repeats="count"
    )
    dataset = Dataset.open(folder)
    users, _, times, _ = zip(*log, strict=True)
    codes = plain_split("global_temporal", users, times)
    job = ViewFold(
        dataset,
        Assignment(Split.parse("global_temporal"), codes, np.zeros(NUM_ITEMS, bool)),
        PrepareOptions(group_size=3, max_events=MAX_EVENTS),
        StatisticsOptions(neighbour_window=5),
    )
    folded = job.render("groups")
    data = ServingData.open(dataset.spec.to_dict(), save(tmp_path, dataset, folded.statistics))
    parser = RequestParser(data.spec, data.items, data.statistics_names())
    renderer = RequestRenderer(data.template, data.statistics, MAX_EVENTS)
    for row in folded.rows["test"]:
        user, now = row["user_index"], row["time"]
        before = [
            (event, code)
            for event, code in zip(log, codes.tolist(), strict=True)
            if event[0] == user and event[2] < now and code != TEST
        ]
        # A user not looked up by id is told by the request alone, so it must hold everything.
        request = {
            "user": {"age": 20 + user} | ({"id": f"u{user}"} if known else {}),
            "time": now,
            "history": [behaviour(data, event, own_fields) for event, _ in before],
            "candidates": [f"i{item}" for item in row["item_indices"]],
        }
        told = renderer.render(parser.parse(request))
        assert told.history == row["history"]
        assert told.candidates == row["candidates"]
        if known:
            later = [
                behaviour(data, event, own_fields)
                for event, code in before[-MAX_EVENTS:] or before
                if code != TRAIN
            ]
            fewer = renderer.render(parser.parse(request | {"history": later}))
            assert fewer.candidates == row["candidates"]


def behaviour(data: ServingData, event: tuple[int, int, float, float], own: bool) -> dict[str, Any]:
    item = f"i{event[1]}"
    told: Any = item
    if own:
        attributes = data.items[item].attributes.items()
        told = {"id": item} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in attributes
        }
    return {"item": told, "time": event[2], "value": event[3]}


@pytest.fixture
def data(write_shop, tmp_path: Path) -> ServingData:
    log = [(n % 4, n % 7, 3600.0 * n, float(1 + n % 5)) for n in range(30)]
    dataset = Dataset.open(write_shop(log, num_users=NUM_USERS, num_items=NUM_ITEMS))
    statistics = FoldedStatistics.for_dataset(dataset.spec)
    items, users = dataset.item_records, dataset.user_records
    for user, item, time, value in log:
        statistics.update(Event(users[user].id, items[item].id, time, value), items[item])
    return ServingData.open(dataset.spec.to_dict(), save(tmp_path, dataset, statistics))


def ask(data: ServingData, **changes: Any) -> Any:
    row = {"user": {"age": 9}, "time": 1e6, "history": [], "candidates": ["i1"]} | changes
    return RequestParser(data.spec, data.items, data.statistics_names()).parse(row)


def test_what_a_request_brings_goes_before_what_is_looked_up(data: ServingData) -> None:
    renderer = RequestRenderer(data.template, data.statistics)
    new = {"id": "brand new", "title": "Lamp", "statistics": {"item_count": "many"}}
    told = renderer.render(
        ask(data, candidates=["i1", new], statistics={"user_positive_percent": "77"})
    )
    assert told.history[0] == "9 years, 77 percent"
    assert told.candidates[1] == "Lamp, many"
    assert told.candidates[0].startswith("Thing 1 by maker 1, 5, ")
    without = RequestRenderer(data.template, None).render(ask(data, candidates=["i1", new]))
    assert without.candidates == ["Thing 1 by maker 1", "Lamp, many"]


def test_items_without_ids_are_told_one_by_one(data: ServingData) -> None:
    behaviours = [
        {"item": {"title": "One"}, "time": 1, "value": 5},
        {"item": {"title": "Two"}, "time": 2, "value": 1},
        {"item": {"id": "i1", "title": "Three"}, "time": 3, "value": 1},
        {"item": "i1", "time": 4, "value": 1},
    ]
    told = RequestRenderer(data.template, data.statistics, 3).render(ask(data, history=behaviours))
    assert [text.split(",")[0] for text in told.history[1:-1]] == [
        "disliked Two",
        "disliked Three",
        "disliked Thing 1",
    ]
    assert "4 events" in told.history[0]  # statistics count all of them


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"time": 3600.0 * 29}, "too_early", "they would leak the future"),
        ({"user": None}, "no_text", r"'profile' needs a value for \{age\}"),
    ],
)
def test_requests_that_cannot_be_told(data: ServingData, changes, kind, message) -> None:
    with pytest.raises(RejectedRow, match=message) as caught:
        RequestRenderer(data.template, data.statistics).render(ask(data, **changes))
    assert caught.value.kind == kind


def test_serving_data_of_something_else(data: ServingData, tmp_path: Path) -> None:
    spec = data.spec.to_dict()
    folder = tmp_path / "serving"
    with pytest.raises(ConfigError, match="data set 'shop', and the model was trained on 'other'"):
        ServingData.open(spec | {"name": "other"}, folder)
    with pytest.raises(DataError, match=r"prepare\.json is missing"):
        ServingData.open(spec, tmp_path)
    FoldedStatistics.for_dataset(data.spec, StatisticsOptions(factors=0)).save(folder / STATISTICS)
    with pytest.raises(ConfigError, match=r"no field \{user_expected_value\}"):
        ServingData.open(spec, folder)


def test_a_newer_catalogue(data: ServingData, tmp_path: Path) -> None:
    path = tmp_path / "new_items.csv"
    path.write_text("item_id,title,maker,tags\nx,Lamp,,red|soft\ny,Chair,maker 1,\n")
    newer = ServingData.open(data.spec.to_dict(), tmp_path / "serving", path)
    assert newer.item_texts() == {"x": "Lamp", "y": "Chair by maker 1"}
    assert newer.fingerprint != data.fingerprint
    assert newer.statistics is not None
    path.write_text("item_id,title\nx,Lamp\n")
    with pytest.raises(DataError, match="has no column 'maker'"):
        ServingData.open(data.spec.to_dict(), None, path)
    with pytest.raises(DataError, match="the catalogue is empty"):
        ServingData.open(data.spec.to_dict(), None).item_texts()


def test_the_row_of_the_docs_is_told_by_the_template_of_the_example() -> None:
    """The example of docs/requests.md is a request of MovieLens, as the examples around it are."""
    page = (Path(__file__).parents[2] / "docs" / "requests.md").read_text(encoding="utf-8")
    example, *_ = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    spec = DatasetSpec.load(_TASKS / "movielens")
    catalogue = {
        identifier: Item(identifier, {"title": f"Film {identifier}", "year": 1995})
        for identifier in ("50", "181")
    }
    request = RequestParser(spec, catalogue).parse(json.loads(example))
    template = DatasetTemplate.parse(spec.template)
    found = RequestRenderer(template, None).render(request)
    assert "24 year old female writer" in found.history[0]
    assert [text.split(",")[0] for text in found.candidates] == [
        "Film 181 (1995)",
        "Another (2026)",
    ]


_TASKS = Path(__file__).parents[2] / "tasks"
# What the public templates say where everything is known; they were trained on nothing else.
COMPLETE = {
    "movielens": [
        "24 year old female writer",
        "loved Fargo (1996), 2 hours ago",
        "Thursday morning",
        "Heat (1995), Crime, Drama",
    ],
    "book_crossing": ["reader of 24 from Peru", "loved Fargo by A", "", "Heat by B, 1995, C"],
}


@given(known=st.sets(st.sampled_from(["user", "time", "event time", "value", "columns"])))
@pytest.mark.parametrize("source", COMPLETE)
def test_titles_are_enough_for_the_templates_of_public_data(source: str, known: set[str]) -> None:
    spec = DatasetSpec.load(_TASKS / source)
    user = {"age": 24, "gender": "female", "occupation": "writer", "country": "Peru"}
    row = {
        "user": user if "user" in known else None,
        "time": 36_000 if "time" in known else None,
        "history": [
            {"item": {"title": "Fargo"}}
            | ({"time": 28_000} if "event time" in known else {})
            | ({"value": 9} if "value" in known else {})
        ],
        "candidates": [{"title": "Heat"}],
    }
    if "columns" in known:
        row["history"][0]["item"] |= {"year": 1996, "author": "A"}
        more = {"year": 1995, "genres": ["Crime", "Drama"], "author": "B", "publisher": "C"}
        row["candidates"][0] |= more
    request = RequestParser(spec, {}).parse(row)
    told = RequestRenderer(DatasetTemplate.parse(spec.template), None).render(request)
    _, event, _, candidate = texts = [*told.history, *told.candidates]
    assert "Fargo" in event
    assert "Heat" in candidate
    for text, complete in zip(texts, COMPLETE[source], strict=True):
        rest = iter(complete)  # clauses are left out, and nothing is added
        assert all(letter in rest for letter in text)
    if len(known) == 5:
        assert texts == COMPLETE[source]
