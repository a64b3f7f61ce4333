"""A model folder with random weights and the data it is served with: 12 films, known users.

The model was trained on books, too, which come first in the alphabet, and on what has no users.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.store.manifest import MANIFEST
from m6rec_jax.data.store.prepared import CATALOGUE, STATISTICS, write_catalogue
from m6rec_jax.engine.model_folder import InferenceSettings, save_assets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.text.records import Event, Item
from m6rec_jax.text.templates import DatasetTemplate
from tests.data.fold import FoldedStatistics
from tests.pipeline import shop_rows

S, T, MAX_EVENTS = 48, 32, 3
PREPARED, BOOKS_PREPARED = "films.by_time", "books.by_time"
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
        "writing": {
            "titles": {"prefix": "[{genre}:]", "text": "{title}"},
            "contents": {"prefix": "film", "text": "{title}, {genre}"},
            "explanations": {"about": "{title}", "text": "[{shared_genre} again]"},
        },
    },
}
ITEMS = [
    Item(f"f{n}", dict(zip(("title", "genre"), text.split(", "), strict=True)))
    for n, text in enumerate(shop_rows.ITEMS)
]
# Books have no genre, and are told in words of their own.
BOOKS_SPEC = SPEC | {
    "name": "books",
    "items": {"id": "item_id", "columns": {"title": "string"}},
    "template": {
        "event": "{outcome} {title}",
        "candidate": "{title}",
        "item": "{title}, a book",
        "outcomes": SPEC["template"]["outcomes"],
    },
}
BOOKS = [Item(f"b{n}", {"title": f"Book {n}"}) for n in range(4)]
NOW = 1_000_000.0


def write_model(folder: Path, model: Any, variables: Any, vocabulary: Any) -> Path:
    """Writes `MODEL_DIR` with a task of each job, and one of dialogues."""
    run = RunDescription(model.config, vocabulary.fingerprint, "prompts", 4)
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(7, dict(variables), data={}, run=run, frozen=("params",))
    shared: dict[str, Any] = {"max_events": MAX_EVENTS, "prepared": PREPARED}
    tasks = {
        "ctr": TaskSettings(0, positive_classes=(1, 2), kind="scoring", **shared),
        "next": TaskSettings(1, kind="retrieval", **shared),
        "books_next": TaskSettings(1, kind="retrieval", prepared=BOOKS_PREPARED),
        "plausible": TaskSettings(1, kind="likelihood", **shared),
        "titles": TaskSettings(0, kind="generation", writing="titles", **shared),
        "contents": TaskSettings(0, kind="generation", writing="contents", **shared),
        "talk_titles": TaskSettings(0, kind="title_recommendation", prepared="talks.by_group"),
        "talk_replies": TaskSettings(
            0, kind="generation", writing="replies", prepared="talks.by_group"
        ),
        "letters": TaskSettings(0, kind="language", prepared="letters.by_group"),
    }
    specs = {BOOKS_PREPARED: BOOKS_SPEC, PREPARED: SPEC}
    save_assets(folder, vocabulary, InferenceSettings(S, T, tasks), specs)
    return folder


def write_data(
    folder: Path, spec: dict[str, Any] = SPEC, items: Sequence[Item] = tuple(ITEMS)
) -> Path:
    """Writes a catalogue and statistics as `m6rec data prepare` does."""
    folder.mkdir(parents=True)
    statistics = FoldedStatistics.for_dataset(DatasetSpec.from_dict(spec))
    for n in range(40):
        item = items[n % len(items)]
        statistics.update(Event(f"u{n % 5}", item.id, 1000.0 * n, float(1 + n % 5)), item)
    statistics.save(folder / STATISTICS)
    rows = [dict(item.attributes) for item in items]
    held_out, counts = np.zeros(len(items), bool), np.arange(len(items)) % 4
    template = DatasetTemplate.parse(spec["template"])
    texts = [template.item(item) for item in items]
    write_catalogue(folder / CATALOGUE, items, pa.Table.from_pylist(rows), texts, held_out, counts)
    views = {"groups": {"max_events": MAX_EVENTS}}
    manifest = {"dataset": spec["name"], "dataset_spec": spec, "views": views}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def write_co_occurrence(folder: Path, num_items: int = len(ITEMS)) -> None:
    """Adds what goes together of the films to what `write_data` wrote."""
    items = np.random.default_rng(0).integers(num_items, size=200)
    acted = np.arange(200) % 9, items, num_items
    CoOccurrence.counted(*acted).save(folder)
    Ease.fitted(*acted).save(folder)


def copy_run(run: Path, folder: Path, tasks: Sequence[str], spec: Any = SPEC) -> Path:
    """A copy of what `write_model` wrote, of these tasks only, with films told by `spec`."""
    shutil.copytree(run, folder, symlinks=True)
    path = folder / "inference" / "settings.json"
    settings = json.loads(path.read_text())
    settings["tasks"] = {name: settings["tasks"][name] for name in tasks}
    path.write_text(json.dumps(settings))
    (folder / "inference" / "datasets" / f"{PREPARED}.json").write_text(json.dumps(spec))
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes requests as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.open()]


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
        "history": behaviours,
        "candidates": candidates,
    }


MALFORMED = [
    b"{half a row",
    b'{"time": "\xff"}',
    json.dumps(request(1) | {"time": "then"}).encode(),
    json.dumps(request(1) | {"candidates": ["unknown"], "history": ["unknown"]}).encode(),
    json.dumps(request(1) | {"time": NOW - 1e5, "history": []}).encode()[:-1] + b', "k": 0}',
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
