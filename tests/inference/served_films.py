"""A model folder with random weights and the data it is served with: 12 films, known users."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.inference.bundle import InferenceSettings, save_assets
from m6rec_jax.inference.task_settings import TaskSettings
from m6rec_jax.tables.prepared import CATALOGUE, MANIFEST, STATISTICS, write_catalogue
from m6rec_jax.tables.schema import DatasetSpec
from m6rec_jax.tables.statistics import Statistics
from m6rec_jax.text.records import Event, Item
from tests.pipeline import shop_rows

S, T, MAX_EVENTS = 48, 32, 3
SPEC = {
    "name": "films",
    "users": {"id": "user_id", "columns": {"taste": "string"}},
    "items": {"id": "item_id", "columns": {"title": "string", "genre": "string"}},
    "events": {"user": "user_id", "item": "item_id", "time": "time", "value": "rating"},
    "label": {"at_least": 4},
    "template": {
        "profile": "user, likes {taste}[, {user_count} films]",
        "event": "{outcome} {title}, {genre}, {ago}",
        "context": "{weekday}",
        "candidate": "{title}, {genre}[. {item_positive_percent} percent liked it]",
        "item": "{title}, {genre}",
        "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
    },
}
ITEMS = [
    Item(f"f{n}", dict(zip(("title", "genre"), text.split(", "), strict=True)))
    for n, text in enumerate(shop_rows.ITEMS)
]
NOW = 1_000_000.0


def write_model(folder: Path, model: Any, variables: Any, vocabulary: Any) -> Path:
    """Writes `MODEL_DIR` with a scoring and a retrieval task."""
    run = RunDescription(model.config, vocabulary.fingerprint, "prompts", 4)
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(7, dict(variables), data={}, run=run, frozen=("params",))
    tasks = {
        "ctr": TaskSettings(0, positive_classes=(1, 2), kind="scoring", max_events=MAX_EVENTS),
        "next": TaskSettings(1, kind="retrieval", max_events=MAX_EVENTS),
    }
    save_assets(folder, vocabulary, InferenceSettings(S, T, tasks), SPEC)
    return folder


def write_data(folder: Path) -> Path:
    """Writes a catalogue and statistics as `m6rec data prepare` does."""
    folder.mkdir()
    statistics = Statistics.for_dataset(DatasetSpec.from_dict(SPEC))
    for n in range(40):
        event = Event(f"u{n % 5}", ITEMS[n % 12].id, 1000.0 * n, float(1 + n % 5))
        statistics.update(event, ITEMS[n % 12])
    statistics.save(folder / STATISTICS)
    rows = [dict(item.attributes) for item in ITEMS]
    held_out, counts = np.zeros(12, bool), np.zeros(12, np.int64)
    attributes = pa.Table.from_pylist(rows)
    write_catalogue(folder / CATALOGUE, ITEMS, attributes, shop_rows.ITEMS, held_out, counts)
    (folder / MANIFEST).write_text(json.dumps({"dataset": "films"}))
    return folder


def request(number: int) -> dict[str, Any]:
    """A request; some are of known users, some of new ones, some bring items of their own."""
    rng = np.random.default_rng(number)
    behaviours: list[dict[str, Any]] = [
        {"item": f"f{rng.integers(12)}", "time": NOW - 500 * n, "value": int(rng.integers(1, 6))}
        for n in range(int(rng.integers(0, 6)), 0, -1)
    ]
    if number % 3 == 0:
        own = {"title": "Film Z", "genre": "comedy"}
        behaviours.append({"item": own, "time": NOW - 1, "value": 4})
    candidates: list[Any] = [f"f{place}" for place in rng.permutation(12)[: number % 5]]
    if number % 4 == 0:
        candidates.append({"title": f"Film {number}", "genre": "drama"})
    user: dict[str, Any] = {"taste": "comedy"}
    if number % 2:
        user["id"] = f"u{number % 7}"
    return {
        "number": number,
        "user": user,
        "time": NOW,
        "behaviours": behaviours,
        "candidates": candidates,
    }


MALFORMED = [
    b"{half a row",
    b'{"time": "\xff"}',
    json.dumps(request(1) | {"time": "then"}).encode(),
    json.dumps(request(1) | {"candidates": ["unknown"], "behaviours": ["unknown"]}).encode(),
    json.dumps(request(1) | {"time": NOW - 1e5, "behaviours": []}).encode()[:-1] + b', "k": 0}',
    json.dumps(request(1) | {"user": {}}).encode(),
]


def write_requests(path: Path, number: int, malformed_at: Any = ()) -> dict[int, bytes]:
    """Writes rows, some of them malformed; returns these by row."""
    bad = {row: MALFORMED[n % len(MALFORMED)] for n, row in enumerate(malformed_at)}
    with path.open("wb") as file:
        for row in range(number):
            file.write(bad.get(row) or json.dumps(request(row)).encode())
            file.write(b"\n")
    return bad
