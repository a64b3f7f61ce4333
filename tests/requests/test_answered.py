"""Requests with answers: what is trained on is what is asked later, and nothing is lost."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.prepared_rows import read_rows
from m6rec_jax.requests.answered import REJECTED, import_requests
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestParser
from m6rec_jax.requests.serving_data import ServingData

SPEC: dict[str, Any] = {
    "name": "films",
    "users": {"id": "user", "columns": {"age": "int"}},
    "items": {"id": "film", "columns": {"title": "string", "genres": "list<string>"}},
    "events": {"user": "user", "item": "film", "time": "time", "value": "stars"},
    "label": {"at_least": 4},
    "template": {
        "profile": "[{age} years old]",
        "event": "[{outcome} ]{title}[, {ago}]",
        "context": "[{weekday}]",
        "candidate": "{title}[, {genres}]",
        "item": "{title}",
        "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
    },
}


def answered(number: int) -> dict[str, Any]:
    return {
        "user": {"age": 20 + number},
        "time": 1e6 + number,
        "history": [
            {"item": {"title": f"Film {number + n}"}, "value": 1 + n, "time": 1000 * n + number}
            for n in range(number % 4)
        ],
        "candidates": ["f1", {"title": f"New {number}", "genres": ["crime"]}],
        "answers": [number % 6, 5],
    }


def test_what_is_trained_on_is_what_is_asked_later(tmp_path: Path) -> None:
    rows = [answered(number) for number in range(60)]
    bad: dict[int, tuple[Any, str]] = {
        3: ('{"candidates": ', "invalid_json"),
        11: (rows[11] | {"answers": [5]}, "wrong_type"),
        12: (rows[12] | {"answers": [5, True]}, "wrong_type"),
        14: (rows[14] | {"history": [{"item": "f9", "time": 1, "value": 1}]}, "unknown_item"),
        15: (rows[15] | {"time": None}, "missing_field"),
        20: (rows[20] | {"candidates": ["f1", "f9"]}, "unknown_item"),
        21: (rows[21] | {"answers": None}, "missing_field"),
        22: (rows[22] | {"part": "tset"}, "wrong_type"),
        # Half of a surrogate pair, as cutting a text with an emoji leaves it.
        30: (rows[30] | {"candidates": ["f1", {"title": "Up \ud83d"}]}, "invalid_json"),
    }
    lines = [bad.get(number, (row,))[0] for number, row in enumerate(rows)]
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "films.jsonl").write_text("\n".join(texts) + "\n")
    folder = tmp_path / "described"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(SPEC))
    (folder / "items.csv").write_text("film,title,genres\nf1,Heat,crime|drama\n")
    made = tmp_path / "films"
    told = import_requests(tmp_path / "films.jsonl", made, dataset=folder)
    assert "first in line 4: " in told[1]
    rejected = [json.loads(line) for line in (made / REJECTED).open()]
    assert {row["row"]: row["kind"] for row in rejected} == {
        n: kind for n, (_, kind) in bad.items()
    }

    prepared = prepare(made, tmp_path / "out", "by_column", progress=False)
    data = ServingData.open(prepared.dataset_spec, prepared.folder)
    parser = RequestParser(data.spec, data.items)
    renderer = RequestRenderer(data.template, None)
    found = [row for part in PARTS for row in read_rows(prepared, "groups", part)]
    assert {int(row["time"] - 1e6) for row in found} == set(range(60)) - set(bad)
    for row in found:
        number = int(row["time"] - 1e6)
        request = renderer.render(parser.parse(rows[number]))
        assert row["history"] == request.history
        given = zip(request.candidates, rows[number]["answers"], strict=True)
        expected = {text: (int(stars >= 4), stars) for text, stars in given}
        written = zip(row["candidates"], row["labels"], row["ratings"], strict=True)
        assert {text: (label, stars) for text, label, stars in written} == expected


def test_plain_texts_say_their_split(tmp_path: Path) -> None:
    rows = [
        {
            "user": f"Liked film {number}.",
            "history": ["Heat"],
            "candidates": ["Up", "Big"],
            "answers": ["Yes.", "no"],
            "part": PARTS[number % 3],
        }
        for number in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "films.parquet")
    import_requests(tmp_path / "films.parquet", tmp_path / "films", name="plain")
    prepared = prepare(tmp_path / "films", tmp_path / "out", "by_column", progress=False)
    assert prepared.manifest.dataset == "plain"
    found = list(read_rows(prepared, "groups", "test"))
    assert sorted(row["history"][0] for row in found) == sorted(
        f"Liked film {number}." for number in (2, 5, 8, 11)
    )
    for row in found:
        assert row["history"][1:] == ["Heat", ""]
        labels = dict(zip(row["candidates"], row["labels"], strict=True))
        assert labels == {"Up": 1, "Big": 0}
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "films.parquet")
    with pytest.raises(DataError, match="'validation'"):
        import_requests(tmp_path / "films.parquet", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_values_what_was_chosen_is_an_event(tmp_path: Path) -> None:
    shop = {key: value for key, value in SPEC.items() if key != "label"}
    shop["events"] = {key: value for key, value in SPEC["events"].items() if key != "value"}
    shop["template"] = SPEC["template"] | {"event": "bought {title}", "outcomes": []}
    (tmp_path / "dataset.json").write_text(json.dumps(shop))
    candidates = {"candidates": [{"title": "Tea"}, {"title": "Mug"}], "answers": [True, False]}
    rows = [answered(number) | candidates for number in range(60)]
    # What was answered once is a behaviour later, and stays of its split.
    later = {"history": [{"item": {"title": "Tea"}, "time": 2e6}], "time": 3e6}
    rows += [{"user": {"id": "ana"}, "time": 2e6} | candidates]
    rows += [{"user": {"id": "ana"}} | later | candidates]
    (tmp_path / "shop.jsonl").write_text("\n".join(map(json.dumps, rows)))
    import_requests(tmp_path / "shop.jsonl", tmp_path / "shop", dataset=tmp_path)
    events = pq.read_table(tmp_path / "shop" / "events.parquet").to_pylist()
    chosen = [event["film"] for event in events if event["part"] != "context"]
    assert chosen == ["Tea"] * 62
