"""A made-up shop as a canonical data set folder, for tests of splits and preparation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TAGS = ("red", "green", "blue", "soft")
TEMPLATE = {
    "profile": "{age} years[, {user_count} events][, {user_positive_percent} percent]"
    "[, mean {user_mean_value}]",
    "event": "[{outcome} ]{title}, {ago}",
    "context": "{weekday}",
    "candidate": "{title}[ by {maker}][, {item_count}][, {item_positive_percent}%]"
    "[, mean {item_mean_value}][, {item_popularity_top}][, {item_popularity_rank}]"
    "[, {item_liked_top}][, {item_liked_rank}][, tags {user_tags_counts}][, {user_tags_percent}%]"
    "[, maker {user_maker_counts}][, neighbours {user_neighbours_percent}]"
    "[, taste {user_taste_difference}][, expected {user_expected_value}]"
    "[, had {user_item_times} times][, last {user_item_ago}]",
    "item": "{title}[ by {maker}]",
    "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
}
UNLABELLED_TEMPLATE = {
    "profile": "{age} years[, {user_count} events]",
    "event": "bought {title}, {ago}",
    "candidate": "{title}[, {item_count}][, {item_popularity_top}][, tags {user_tags_counts}]"
    "[, neighbours {user_neighbours_times}][, had {user_item_times} times][, last {user_item_ago}]",
    "item": "{title}[ by {maker}]",
}

Events = Sequence[tuple[int, int, float, float]]  # user, item, time, value
WriteShop = Callable[..., Path]


def _item(index: int) -> dict[str, Any]:
    tags = [tag for bit, tag in enumerate(TAGS) if (index * 7 + 3) >> bit & 1]
    maker = None if index % 5 == 4 else f"maker {index % 3}"
    return {"item_id": f"i{index}", "title": f"Thing {index}", "maker": maker, "tags": tags}


def declare_parts(folder: Path, parts: Sequence[str | None]) -> None:
    """Gives the events of a shop a column `fold`, which names the part of each."""
    path, spec_file = folder / "events.parquet", folder / "dataset.json"
    table = pq.read_table(path)
    table = table.select([name for name in table.column_names if name != "fold"])
    pq.write_table(table.append_column("fold", pa.array(parts)), path)
    spec = json.loads(spec_file.read_text())
    spec["events"]["part"] = "fold"
    spec_file.write_text(json.dumps(spec))


@pytest.fixture
def write_shop(tmp_path: Path) -> WriteShop:
    """Writes a folder and returns it: `write_shop(events, labelled=True, name="shop", **spec)`.

    Without labels there are values where it is `valued`.
    """

    def write(
        events: Events,
        *,
        num_users: int = 8,
        num_items: int = 12,
        labelled: bool = True,
        valued: bool = False,
        name: str = "shop",
        folder: str = "shop",
        **spec: Any,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        users = [{"user_id": f"u{index}", "age": 20 + index} for index in range(num_users)]
        pq.write_table(pa.Table.from_pylist(users), path / "users.parquet")
        schema = pa.schema(
            [
                ("item_id", pa.string()),
                ("title", pa.string()),
                ("maker", pa.string()),
                ("tags", pa.list_(pa.string())),
            ]
        )
        items = pa.Table.from_pylist([_item(index) for index in range(num_items)], schema)
        pq.write_table(items, path / "items.parquet")
        columns: dict[str, list[Any]] = {
            "user_id": [f"u{user}" for user, *_ in events],
            "item_id": [f"i{item}" for _, item, *_ in events],
            "time": [time for _, _, time, _ in events],
        }
        event_columns = {"user": "user_id", "item": "item_id", "time": "time"}
        if labelled or valued:
            columns["rating"] = [value for *_, value in events]
            event_columns["value"] = "rating"
        pq.write_table(pa.table(columns), path / "events.parquet")
        described: dict[str, Any] = {
            "name": name,
            "users": {"id": "user_id", "columns": {"age": "int"}},
            "items": {
                "id": "item_id",
                "columns": {"title": "string", "maker": "string", "tags": "list<string>"},
            },
            "events": event_columns,
            "statistics": {"by": ["tags", "maker"]},
            "template": TEMPLATE if labelled else UNLABELLED_TEMPLATE,
        }
        if labelled:
            described["label"] = {"at_least": 4}
        (path / "dataset.json").write_text(json.dumps(described | spec))
        return path

    return write
