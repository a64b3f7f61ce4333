"""A folder that `m6rec serve` can be started with: random weights, random words, all jobs and chat.

Sizes are those of MovieLens-100K: 1,682 items, texts of some twelve tokens, histories that fill
144. Speed does not depend on what weights and words are.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.random_models import random_variables, random_words
from m6rec_jax import configuration
from m6rec_jax.bank.export import add_prompts, export_prompts
from m6rec_jax.bank.folder import BankFolder, TaskPrompts
from m6rec_jax.checkpoints.fingerprint import fingerprint
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.data.dataset.reading import write_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.engine.model_folder import InferenceSettings, save_assets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.serving.build_segments import build_segments
from m6rec_jax.text.records import Item

ITEMS, USERS, EVENTS = 1_682, 943, 20_000
SOURCE_LENGTH, TARGET_LENGTH, MAX_EVENTS = 144, 72, 12
PREPARED = "films.per_user_temporal"
NOW = 1_764_000_000.0
SPEC: dict[str, Any] = {
    "name": "films",
    "users": {"file": "users.parquet", "id": "user_id", "columns": {"taste": "string"}},
    "items": {
        "file": "items.parquet",
        "id": "item_id",
        "columns": {"title": "string", "genre": "string"},
    },
    "events": {
        "file": "events.parquet",
        "user": "user_id",
        "item": "item_id",
        "time": "time",
        "value": "rating",
    },
    "label": {"at_least": 4},
    "template": {
        "profile": "likes {taste}",
        "event": "{outcome} {title}, {genre}",
        "context": "{weekday}",
        "candidate": "{title}, {genre}",
        "item": "{title}, {genre}",
        "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}],
        "writing": {
            "titles": {"prefix": "[{genre}:]", "text": "{title}"},
            "explanations": {"prefix": "{title}:", "text": "{genre}"},
        },
    },
}
# A task of each job, and a dialogue's three.
TASKS: dict[str, dict[str, Any]] = {
    "ctr": {"kind": "scoring", "positive_classes": (1,)},
    "next": {"kind": "retrieval"},
    "titles": {"kind": "generation", "writing": "titles"},
    "explanations": {"kind": "generation", "writing": "explanations"},
    "talk_replies": {"kind": "generation", "writing": "replies"},
    "talk_titles": {"kind": "title_recommendation"},
    "talk_next": {"kind": "item_recommendation"},
}
# On the command line of `m6rec serve`, in the folder.
INDEXES = {"next": "index", "talk_next": "talk_index"}
ARGUMENTS = (
    *("run", "--bank", "bank", f"--gin.PREPARED='{PREPARED}'"),
    *(f"--index={task}={name}" for task, name in INDEXES.items()),
)
ALL_JOBS = "--gin.serve.jobs=['title_recommendation', 'likelihood']"


def catalogue() -> list[Item]:
    """Films of no language; titles are all different."""
    rng = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))

    def word() -> str:
        return "".join(rng.choice(letters, rng.integers(2, 5)))

    genres = [word() for _ in range(18)]
    return [
        Item(str(n), {"title": f"{word()} {word()} {n}", "genre": str(rng.choice(genres))})
        for n in range(1, ITEMS + 1)
    ]


def write_data(folder: Path, items: Sequence[Item]) -> Path:
    """Prepares random events of these items below a folder; returns where catalogue and
    statistics are."""
    tables = folder / "tables"
    tables.mkdir(parents=True)
    rng = np.random.default_rng(2)
    users = [f"u{user}" for user in range(USERS)]
    spec = DatasetSpec.from_dict(SPEC)
    write_dataset(
        tables,
        spec,
        {"user_id": users, "taste": ["drama"] * USERS},
        [{"item_id": item.id, **item.attributes} for item in items],
        {
            "user_id": rng.choice(users, EVENTS).tolist(),
            "item_id": rng.choice([item.id for item in items], EVENTS).tolist(),
            "time": (NOW - 60.0 * np.arange(EVENTS, 0, -1)).tolist(),
            "rating": rng.integers(1, 6, EVENTS).astype(float).tolist(),
        },
    )
    options = PrepareOptions(views=("groups", "next_items"), max_events=MAX_EVENTS)
    return prepare(tables, folder, options=options, progress=False).folder


def write_folder(folder: Path, gin_file: str, *, late_layers_start: int = 0) -> Path:
    """Writes run, other run, bank, data and index, and segments where late interaction is on.

    Args:
      folder: a new one.
      gin_file: of `gin_configs/models/`.
      late_layers_start: L' of late interaction; 0: it is off.
    """
    configuration.parse_config(
        [gin_file, "gin_configs/tuning/option_adapter.gin"],
        ["NUM_OPTIONS=2", "RETRIEVAL_DIM=128", f"LATE_LAYERS_START={late_layers_start}"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = random_words(folder)
    prompts = PromptConfig(adapters_late_only=bool(late_layers_start))
    # As CPUs compute fastest.
    config = ModelConfig(dtype="float32", matmul_dtype="bfloat16", prompts=prompts)
    model = M6Rec(config)
    variables = random_variables(model)
    tasks = {
        name: TaskSettings(0, max_events=MAX_EVENTS, prepared=PREPARED, **own)
        for name, own in TASKS.items()
    }
    settings = InferenceSettings(SOURCE_LENGTH, TARGET_LENGTH, tasks)
    described = RunDescription(config, vocabulary.fingerprint, "prompts", 4)
    with CheckpointStore(folder / "run" / "checkpoints") as store:
        store.save(1, dict(variables), data={}, run=described, frozen=("params",))
    save_assets(folder / "run", vocabulary, settings, {PREPARED: SPEC})
    data = write_data(folder, catalogue())
    add_prompts(folder / "bank", folder / "run")
    bank, prepared = str(folder / "bank"), str(data)
    run = folder / "run"
    for task, name in INDEXES.items():
        build_index(folder / name, run, bank=bank, task=task, prepared=prepared, progress=False)
    if late_layers_start:
        build_segments(
            folder / "segments", run, bank=bank, task="ctr", prepared=prepared, progress=False
        )
    return folder


def perturbed(prompts: TaskPrompts, name: str, seed: int) -> TaskPrompts:
    """Prompts of another task that is as large."""
    rng = np.random.default_rng(seed)
    tensors = {
        key: (values + 0.05 * rng.standard_normal(values.shape)).astype(values.dtype)
        for key, values in prompts.tensors.items()
    }
    manifest = dataclasses.replace(
        prompts.manifest, task=name, prompts_fingerprint=fingerprint(tensors)
    )
    return dataclasses.replace(prompts, manifest=manifest, tensors=tensors)


def write_large_bank(folder: Path, name: str, number: int) -> Path:
    """A bank of so many tasks of scoring, `task0` to ..., beside the one of `write_folder`."""
    (base,) = export_prompts(folder / "run", ["ctr"])
    bank = folder / name
    shutil.rmtree(bank, ignore_errors=True)
    BankFolder(bank).add(*(perturbed(base, f"task{n}", n) for n in range(number)))
    return bank
