"""Whoever is asked about 500 requests gives the same probabilities, in the same order.

Requests have items that the user had beside new ones, of which negatives were sampled at two rates,
one of them above 1; and ten texts that do not fit into one row, some longer than a row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gin
import numpy as np
import pytest
from fastapi.testclient import TestClient

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.evaluation.assets import save_task_assets
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.export import command, formats, held_out
from m6rec_jax.export.recording import Recorder
from m6rec_jax.jobs.resources import ServiceOptions
from m6rec_jax.pipeline.prepared_rows import read_rows
from m6rec_jax.pipeline.registration import register_recommendation_tasks, task_info, unregister
from m6rec_jax.pipeline.task_rows import task_dataset
from m6rec_jax.server.app import make_app
from m6rec_jax.serving.batch_inference import infer_requests
from m6rec_jax.serving.service import Service
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary
from tests.evaluation.small_model import small_model
from tests.server.served import make_server
from tests.serving import served_films
from tests.t5x_bridge.needs_t5x import REASON
from tests.tasks.shop import WORDS

TASK = "one_rule_ctr"
NUM_USERS, NUM_ITEMS, NUM_DAYS = 500, 60, 5
DAY, LATER = 86_400, 2_000_000_000
LENGTHS = {"inputs": 96, "targets": 32}
SPEC = {
    "name": "shelves",
    "users": {"id": "user_id", "columns": {"town": "string"}},
    "items": {"id": "item_id", "columns": {"title": "string"}},
    "events": {"user": "user_id", "item": "item_id", "time": "time"},
    "repeats": "count",
    "statistics": {"by": []},
    "template": {
        "profile": "from {town}",
        "event": "bought {title}",
        "candidate": "{title}",
        "item": "{title}",
    },
}


class World(NamedTuple):
    """A run whose task is registered, requests, and what the server answers.

    `rows` are those of the test part, `requests` the same for the server, and `repeats` says which
    candidates the user had before. `probabilities` are the server's.
    """

    run: Path
    prepared: Path
    model: Any
    rows: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    repeats: list[list[bool]]
    probabilities: list[np.ndarray]


def bought() -> np.ndarray:
    """Each day something that the user had and something new, `[users, days, 2]`."""
    random = np.random.default_rng(0)
    found = np.zeros((NUM_USERS, NUM_DAYS, 2), int)
    for user, own in enumerate(found):
        new = random.permutation(NUM_ITEMS)
        own[0] = new[:2]
        for day in range(1, NUM_DAYS):
            own[day] = random.choice(own[:day].ravel()), new[day + 1]
        found[user] = own
    return found


def write_tables(folder: Path, items: np.ndarray) -> list[str]:
    """Writes the canonical folder; returns the titles, of one word to forty."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    words = ["red", "blue", "old", "new", "small", "large", "tea", "cup", "pot", "pan", "box"]
    titles = [
        " ".join([*random.choice(words, 40 if n % 20 == 7 else n % 9), f"thing {n}"])
        for n in range(NUM_ITEMS)
    ]
    tables: dict[str, tuple[list[str], list[Any]]] = {
        "users": (
            ["user_id", "town"],
            [(f"u{n}", ["Rome", "Oslo"][n % 2]) for n in range(NUM_USERS)],
        ),
        "items": (["item_id", "title"], [(f"i{n}", title) for n, title in enumerate(titles)]),
        "events": (
            ["user_id", "item_id", "time"],
            [
                (f"u{user}", f"i{item}", DAY * (1 + day))
                for (user, day, _), item in np.ndenumerate(items)
            ],
        ),
    }
    for name, (header, lines) in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    (folder / "dataset.json").write_text(json.dumps(SPEC))
    return titles


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data, run = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    items = bought()
    titles = write_tables(data / "shelves", items)
    options = PrepareOptions(views=("groups",), group_size=10, negative_power=0.0)
    split = "global_temporal:train=0.6,validation=0.2"
    prepared = prepare(data / "shelves", data, split, options=options, progress=False)
    rates = prepared.manifest.views["groups"].negatives
    assert rates["repeat_sampling_rate"] > 1 > 2 * rates["sampling_rate"]
    file = prepared.folder / "vocabulary.model"
    train_vocabulary([*titles * 5, "from Rome bought", "from Oslo"], file, size=330, **WORDS)
    prompts = {"num_prompts": 3, "num_options": 2, "head": "option"}
    small_model(Vocabulary(file), run, 1, **prompts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_DIR_VARIABLE, str(data))
        split = prepared.folder.name.partition(".")[2]
        names = register_recommendation_tasks("one_rule", "shelves", split=split)
        save_task_assets(run, TASK, LENGTHS)
        rows = list(read_rows(prepared, "groups", "test"))
        requests, repeats = [], []
        for row in rows:
            past = items[row["user_index"], : NUM_DAYS - 1]
            requests.append(
                {
                    "time": LATER,
                    "user": {"town": ["Rome", "Oslo"][row["user_index"] % 2]},
                    "history": [
                        {"item": f"i{item}", "time": DAY * (1 + day)}
                        for (day, _), item in np.ndenumerate(past)
                    ],
                    "candidates": [f"i{item}" for item in row["item_indices"]],
                }
            )
            repeats.append(np.isin(row["item_indices"], past).tolist())
        service = Service.open(run, options=ServiceOptions(prepared=str(prepared.folder)))
        server = make_server(service)
        with TestClient(make_app(server)) as client:
            answers = [client.post("/v1/score", json=own | {"task": TASK}) for own in requests]
        server.scheduler.close(10)
        probabilities = [
            scores(own["candidates"], it.json()) for own, it in zip(requests, answers, strict=True)
        ]
        model = load_model(run)
        yield World(run, prepared.folder, model, rows, requests, repeats, probabilities)
        unregister(names)
    gin.clear_config()


def scores(ids: list[str], answer: dict[str, Any]) -> np.ndarray:
    by_id = {item["id"]: item["score"] for item in answer["items"]}
    return np.array([by_id[id_] for id_ in ids])


def agree(world: World, found: list[np.ndarray]) -> None:
    assert len(found) == len(world.probabilities) == NUM_USERS
    for own, expected in zip(found, world.probabilities, strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-5)
        # Equal ones may stand either way.
        assert np.diff(expected[np.argsort(-own, kind="stable")]).max() < 1e-5


def of_requests(world: World, flat: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum([len(own) for own in world.probabilities])
    assert len(flat) == ends[-1]
    return np.split(flat, ends[:-1])


def test_the_requests_are_of_the_kind_that_went_wrong(world: World) -> None:
    encode = world.model.vocabulary.encode
    lengths = [[len(encode(text)) + 2 for text in row["candidates"]] for row in world.rows]
    assert all(any(had) and not all(had) for had in world.repeats)
    assert np.mean([sum(own) > LENGTHS["targets"] for own in lengths]) > 0.9
    assert np.mean([max(own) > LENGTHS["targets"] for own in lengths]) > 0.2
    assert max(np.ptp(own) for own in world.probabilities) > 0.1


def test_files_of_requests(world: World, tmp_path: Path) -> None:
    file = served_films.write_rows(tmp_path / "in.jsonl", world.requests)
    (report,) = infer_requests(
        file, tmp_path / "out.jsonl", world.run, prepared=str(world.prepared), progress=False
    )
    answered = served_films.read_rows(Path(report.output))
    agree(world, [np.array(row["probabilities"]) for row in answered])


def test_predictions_of_a_part(world: World) -> None:
    evaluator, task = Evaluator(TASK, LENGTHS, 64, split="test"), task_info(TASK)
    predictions = evaluator.predict(task, world.model.model, world.model.variables)
    agree(
        world,
        of_requests(
            world, task.job.columns(evaluator.evaluation(task).data, predictions)["probability"]
        ),
    )
    assert evaluator.metrics(task, predictions)["share_of_cut_texts"] < 0.1  # longer than a row


@pytest.mark.parametrize("format_", ["saved_model", "litert"])
def test_exports(world: World, format_: str, tmp_path: Path) -> None:
    if missing := formats.what_is_missing(format_):
        pytest.skip(missing)
    recorder, folder = Recorder(), tmp_path / "export"
    answered = held_out.ask(world.model, TASK, recorder, rows=72, num_beams=0)
    asked = held_out.Asked(world.model, recorder, answered, ["cpu"], precision="float32")
    command.write_export(folder, format_, asked)
    agree(world, ASKED[format_](world, folder))


def ask_saved_model(world: World, folder: Path) -> list[np.ndarray]:
    import tensorflow as tf

    from m6rec_jax.export.check_saved_model import arguments

    score = tf.saved_model.load(str(folder / "1")).signatures["score"]
    inputs = [
        {"history": row["history"], "candidates": row["candidates"], "repeats": had}
        for row, had in zip(world.rows, world.repeats, strict=True)
    ]
    found: list[np.ndarray] = []
    for start in range(0, NUM_USERS, 64):
        part = [{"task": TASK, "inputs": own} for own in inputs[start : start + 64]]
        rows = score(**arguments(part))["scores"].numpy()
        found += [row[row >= 0] for row in rows]
    return found


def ask_device(world: World, folder: Path) -> list[np.ndarray]:
    from m6rec_jax.export.device_client import EdgeModel

    model = EdgeModel(folder)
    return [
        model.score(row["history"], row["candidates"], repeats=had)
        for row, had in zip(world.rows, world.repeats, strict=True)
    ]


ASKED: dict[str, Callable[[World, Path], list[np.ndarray]]] = {
    "saved_model": ask_saved_model,
    "litert": ask_device,
}


def test_t5x_infer(world: World, tmp_path: Path) -> None:
    """What t5x.infer computes of its rows and gives to the function that writes them."""
    pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)
    import seqio

    from m6rec_jax.t5x_bridge import variables
    from m6rec_jax.t5x_bridge.data import T5xFeatureConverter
    from m6rec_jax.t5x_bridge.model import M6RecModel
    from m6rec_jax.t5x_bridge.predictions import write_predictions

    model = M6RecModel(world.model.model, TASK)
    params = variables.joined(world.model.variables)
    rows = task_dataset(seqio.TaskRegistry.get(TASK), LENGTHS, "test")
    batches = T5xFeatureConverter()(rows, LENGTHS).batch(64).as_numpy_iterator()
    parts = [model.score_batch(params, batch)[1] for batch in batches]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    path = tmp_path / f"{TASK}-score.jsonl-00000-of-00001"
    write_predictions(str(path), ([], found), rows, "score", None, split="test")
    flat = np.array([row["probability"] for row in served_films.read_rows(path)])
    agree(world, of_requests(world, flat))
