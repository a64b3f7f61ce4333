"""Requests with answers: what is trained on is what is asked later, and nothing is lost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.splits import PARTS
from m6rec_jax.data.update import update
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.prepared_rows import past_events, past_items, read_rows
from m6rec_jax.requests.answered import REJECTED, prepare_requests
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestParser
from m6rec_jax.requests.serving_data import ServingData

SPEC: dict[str, Any] = {
    "name": "asked",
    "users": {"id": "user", "columns": {"age": "int"}},
    "items": {"id": "film", "columns": {"title": "string", "genres": "list<string>"}},
    "events": {"user": "user", "item": "film", "time": "time", "value": "stars"},
    "label": {"at_least": 4},
    "template": {
        "profile": "[{age} years old, ][liked {user_positive_percent}% of {user_count}]",
        "event": "[{outcome} ]{title}[, {ago}]",
        "context": "[{weekday}]",
        "candidate": "{title}[, {genres}]",
        "item": "{title}",
        "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
    },
}


def asked(number: int) -> dict[str, Any]:
    """A request with answers: of a data set with columns, some of which are missing."""
    row: dict[str, Any] = {
        "history": [
            {"item": {"title": f"Film {number + n}"}, "value": 1 + n, "time": 1000 * n}
            for n in range(number % 4)
        ],
        "candidates": ["f1", {"title": f"Film {number % 7}", "genres": ["crime"]}],
        "answers": [number % 6, 5],
    }
    if number % 2:
        row |= {"user": {"id": f"u{number % 29}", "age": 30}, "time": 1e6 + number}
    return row


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def rows_of(prepared: Prepared, view: str = "groups") -> dict[int, dict[str, Any]]:
    """Rows of all parts, by the number of their line, with their part."""
    return {
        row["group_id"]: row | {"part": part}
        for part in PARTS
        for row in read_rows(prepared, view, part)
    }


def test_what_is_trained_on_is_what_is_asked_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [asked(number) for number in range(60)]
    bad: dict[int, tuple[Any, str]] = {
        3: ('{"candidates": ', "invalid_json"),
        11: (asked(11) | {"answers": [5]}, "bad_list"),
        12: (asked(12) | {"answers": [5, True]}, "wrong_type"),
        20: (asked(20) | {"candidates": ["f1", "f9"]}, "unknown_item"),
        21: (asked(21) | {"answers": None}, "missing_field"),
        # Half of a surrogate pair, as cutting a text with an emoji leaves it.
        30: (asked(30) | {"candidates": ["f1", {"title": "Up \ud83d"}]}, "invalid_utf8"),
    }
    file = write(tmp_path / "asked.jsonl", [bad.get(n, (line,))[0] for n, line in enumerate(lines)])
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(SPEC))
    (folder / "items.csv").write_text("film,title,genres\nf1,Heat,crime|drama\n")
    prepared = prepare_requests(file, tmp_path / "out", folder, progress=False)
    rows = rows_of(prepared)
    assert set(rows) == set(range(60)) - set(bad)
    assert f"all of them are in {prepared.folder / REJECTED}" in caplog.text
    rejected = [json.loads(line) for line in (prepared.folder / REJECTED).open()]
    assert {row["row"]: row["kind"] for row in rejected} == {n: own[1] for n, own in bad.items()}
    assert sum(prepared.manifest["rejected"].values()) == len(bad)
    assert "\n  line 4: " in caplog.text

    data = ServingData.open(prepared.manifest["dataset_spec"], prepared.folder)
    parser = RequestParser(data.spec, data.items, data.statistics_names())
    renderer = RequestRenderer(data.template, data.statistics)
    catalogue = prepared.catalogue()
    for number, row in rows.items():
        told = renderer.render(parser.parse(lines[number]))
        assert (row["history"], row["candidates"]) == (told.history, told.candidates)
        assert row["labels"].tolist() == [int(number % 6 >= 4), 1]
        assert row["ratings"].tolist() == [number % 6, 5]
        names = [catalogue.items[index].attributes["title"] for index in row["item_indices"]]
        assert names == ["Heat", f"Film {number % 7}"]
    # A user's rows are of one part, the user's own behaviours are counted.
    parts: dict[int, set[str]] = {}
    for row in rows.values():
        parts.setdefault(row["user_index"], set()).add(row["part"])
    assert all(len(own) == 1 for own in parts.values())
    assert rows[7]["history"][0] == "30 years old, liked 0% of 3"
    assert rows[2]["history"] == ["liked 0% of 2", "disliked Film 2", "disliked Film 3", ""]
    assert prepared.num_rows("next_items") == prepared.num_rows("documents")

    # Events of the same data set are no new requests.
    (folder / "users.csv").write_text("user,age\nu1,30\n")
    (folder / "events.csv").write_text("user,film,time,stars\nu1,f1,5,4\n")
    with pytest.raises(DataError, match="was prepared from requests with answers, to which no ev"):
        update(folder, tmp_path / "out", "by_user", progress=False)


def test_a_shop_without_labels(tmp_path: Path) -> None:
    """Answers say what was chosen; what behaviours mean, and count, is the shop's own."""
    shop = {key: value for key, value in SPEC.items() if key != "label"} | {"repeats": "count"}
    shop["events"] = {key: value for key, value in SPEC["events"].items() if key != "value"}
    shop["template"] = SPEC["template"] | {
        "profile": "[bought {user_count}]",
        "event": "bought {title}",
        "outcomes": [{"text": "bought"}],
    }
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(shop))
    rows = [
        {
            "user": {"id": f"u{number}"},
            "time": 1e6,
            "history": [{"item": {"title": "Tea"}, "time": 1.0}] * (number % 3),
            "candidates": [{"title": "Tea"}, {"title": "Mug"}],
            "answers": [True, False],
        }
        for number in range(60)
    ]
    prepared = prepare_requests(
        write(tmp_path / "shop.jsonl", rows), tmp_path / "out", folder, progress=False
    )
    row = rows_of(prepared)[2]
    assert row["history"][0] == "bought 2"
    assert row["labels"].tolist() == [1, 0]
    assert np.isnan(row["ratings"]).all()
    documents = {row["target"] for row in read_rows(prepared, "documents", "train")}
    assert documents == {"Tea. bought. Mug. not chosen."}
    assert prepared.outcome_words() == ("not chosen", "bought")
    assert not prepared.repeats_count
    # What was not chosen is no event.
    assert set(np.flatnonzero(prepared.catalogue().train_counts)) == {0}
    with pytest.raises(DataError, match=r"from requests with answers, which say nothing of what"):
        prepared.co_occurrence()
    for row in rows:
        row["answers"] = [False, False]
    nothing = prepare_requests(
        write(tmp_path / "shop.jsonl", rows), tmp_path / "out", folder, progress=False
    )
    assert not nothing.catalogue().train_counts.any()


def test_plain_texts_split_by_a_column(tmp_path: Path) -> None:
    rows = [
        {
            "user": f"Liked Alien, not film {number // 3}.",
            "candidates": ["Up", "Big"],
            "answers": ["Yes.", "no"],
            "part": ("train", "validation", "test")[number % 3],
        }
        for number in range(12)
    ]
    rows[5]["part"] = "tset"
    file = tmp_path / "films.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    prepared = prepare_requests(file, tmp_path / "out", split="by_column", progress=False)
    found = rows_of(prepared)
    assert {n: row["part"] for n, row in found.items()} == {
        n: row["part"] for n, row in enumerate(rows) if n != 5
    }
    assert found[1]["history"] == ["Liked Alien, not film 0.", ""]
    assert found[1]["candidates"] == ["Up", "Big"]
    assert found[1]["labels"].tolist() == [1, 0]
    documents = [row["target"] for row in read_rows(prepared, "documents", "test")]
    assert set(documents) == {"Up. yes. Big. no."}
    wanted = [row["items"] for row in read_rows(prepared, "next_items", "test")]
    assert wanted == [["Up"]] * 3
    # Who tells the same history is the same user: what training rows said is past.
    assert [own.tolist() for own in past_items(prepared, "test")] == [[0, 1]] * 3
    assert sorted(past_events(prepared, "test")[1].tolist()) == [0] * 4 + [1] * 4
    with pytest.raises(DataError, match=r"'leave_one_out' needs a table of events"):
        prepare_requests(file, tmp_path / "out", split="leave_one_out")
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl"):
        prepare_requests(tmp_path / "none.jsonl", tmp_path / "out")
    pq.write_table(pa.Table.from_pylist(rows[:1]), file)
    with pytest.raises(DataError, match=r"part 'validation' is empty"):
        prepare_requests(file, tmp_path / "out", split="by_column", progress=False)
