"""Every job of a shop, of reviews and of dialogues: one mixture, trained, evaluated and used.

All commands run in one process of their own, since importing takes most of a command's time.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.dialogue_files import write_inspired_folder
from tests.data.test_reviews import write_reviews
from tests.integration.commands import SHOP, m6rec_each, succeeded

JOBS = (
    *("shop_ctr", "shop_retrieval", "shop_explanations", "shop_titles", "shop_contents"),
    *("hotels_explanations", "talks_replies", "talks_titles", "talks_retrieval"),
)
TASKS = f"""
from m6rec_jax.pipeline.registration import (
    register_dialogue_tasks,
    register_generation_tasks,
    register_mixture,
    register_recommendation_tasks,
)

register_recommendation_tasks("shop", dataset="corner-shop")
register_generation_tasks("shop", "corner-shop", views=("explanations", "titles", "contents"))
register_generation_tasks("hotels", "hotels", split="by_group", views=("explanations",))
register_dialogue_tasks("talks", "talks")
register_mixture("jobs", {JOBS})
"""

PREPARE = """
import m6rec_jax.data.prepare
import m6rec_jax.data.rendering.vocabulary_text

PrepareOptions.group_size = 2
PrepareOptions.views = (
    'groups', 'next_items', 'documents', 'explanations', 'titles', 'contents',
)
train_on_prepared.shared = 'jobs'
train_on_prepared.sources = (
    ('corner-shop', 'per_user_temporal', ('groups', 'documents', 'explanations')),
    ('hotels', 'by_group', ('explanations',)),
    ('talks', 'by_group', ('replies', 'recommendations')),
)
train_vocabulary.size = 600
"""

TRAIN = """
include 'gin_configs/models/tiny.gin'
include 'gin_configs/tuning/option_adapter.gin'
include 'gin_configs/recipes/mixture.gin'

import m6rec_jax.pipeline.locations
import tasks.own_jobs

vocabulary_file.shared = 'jobs'
MIXTURE_OR_TASK_NAME = 'jobs'
VOCAB_SIZE = 768
NUM_OPTIONS = 2
RETRIEVAL_DIM = 8
TRAINABLE = 'all'
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 48}
TRAIN_STEPS = 2
WARMUP_STEPS = 1
BATCH_SIZE = 8
EVAL_PERIOD = 2
BatchIterator.num_shards = 1
total_loss.language_modelling_weight = 1.0
Validation.evaluate = None
Logging.tensorboard = False
"""

EVAL = """
include 'gin_configs/commands/eval.gin'

import m6rec_jax.pipeline.locations
import tasks.own_jobs

vocabulary_file.shared = 'jobs'
MIXTURE_OR_TASK_NAME = 'jobs'
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 48}
BATCH_SIZE = 8
evaluate.limit = 8
"""

ZERO_SHOT = """
import m6rec_jax.jobs.scoring

TASK = 'shop_ctr'
JOB = 'likelihood'
BATCH_SIZE = 2
LikelihoodAnswers.contrast = ('bought', 'not chosen')
"""

TEMPLATES = {
    "explanations": {
        "about": "{name}",
        "prefix": "because",
        "text": "[{shared_kinds}, like {shared_kinds_in}]",
        "liked": "{name}",
    },
    "titles": {"prefix": "{kinds}:", "text": "{name}"},
    "contents": {"prefix": "next", "text": "{name}"},
}

REQUESTS = [
    {"user": {"city": "Faro"}, "time": "2024-06-01T10:00:00Z", "candidates": ["0001", "0003"],
     "history": [{"item": "0002", "time": "2024-05-01"}]},
    {"user": {}, "time": "2024-06-01T10:00:00Z", "history": [], "candidates": []},
    {"user": {}, "time": "2024-06-01T10:00:00Z", "history": [], "candidates": ["9999"]},
]  # fmt: skip

RUN = "--gin.MODEL_DIR=run"
COMMANDS = {
    "check": ["data", "check", "talks"],
    "prepare": ["data", "prepare", "talks"],
    "hotels": ["data", "prepare", "hotels"],
    "shop": ["data", "prepare", "shop", "--gin_file", "prepare.gin"],
    "vocabulary": ["vocab", "train", "--gin_file", "prepare.gin"],
    "train": ["train", "--gin_file", "train.gin", RUN],
    "eval": ["eval", "--gin_file", "eval.gin", RUN],
    "infer": [
        *("infer", "--gin_file", "eval.gin", RUN, "--gin.infer.limit=4"),
        "--gin.MIXTURE_OR_TASK_NAME=talks_replies",
    ],
    "requests": [
        *("infer", "--requests", "requests.jsonl", "--output", "texts.jsonl", RUN),
        *("--gin.TASK=shop_explanations", "--gin.BATCH_SIZE=2"),
    ],
    # Hotels come first in the alphabet; each task is served with its own data all the same.
    "index": ["index", "build", RUN, "--output", "shop.index", "--gin.TASK=shop_retrieval"],
    "ranked": [
        *("infer", "--requests", "requests.jsonl", "--output", "ranked.jsonl", RUN),
        *("--gin_file", "zero_shot.gin"),
    ],
    "recommended": [
        *("infer", "--requests", "requests.jsonl", "--output", "wares.jsonl", RUN),
        *("--gin.TASK=shop_contents", "--gin.JOB=title_recommendation", "--gin.BATCH_SIZE=2"),
    ],
    "chat": ["chat", RUN],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The user's folder, and what each command printed."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(SHOP, folder / "shop")
    spec = json.loads((folder / "shop" / "dataset.json").read_text())
    spec["template"]["writing"] = TEMPLATES
    (folder / "shop" / "dataset.json").write_text(json.dumps(spec))
    write_inspired_folder(folder / "talks", 40)
    write_reviews(folder / "hotels")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own_jobs.py").write_text(TASKS)
    for name, text in (
        *(("prepare", PREPARE), ("train", TRAIN), ("eval", EVAL)),
        ("zero_shot", ZERO_SHOT),
    ):
        (folder / f"{name}.gin").write_text(text)
    lines = "".join(json.dumps(request) + "\n" for request in REQUESTS)
    (folder / "requests.jsonl").write_text(lines)
    runs = m6rec_each(folder, *COMMANDS.values(), stdin="I liked Heat (1995)\n/quit\n")
    return folder, dict(zip(COMMANDS, map(succeeded, runs), strict=True))


def test_the_folders_are_described(ran: tuple[Path, dict[str, str]]) -> None:
    assert ran[1]["check"] == "talks: 40 dialogues (40 without a split)\n"
    assert ran[1]["prepare"].strip().endswith("cache/talks.by_group")


def test_every_job_has_its_metrics(ran: tuple[Path, dict[str, str]]) -> None:
    out = ran[1]["eval"]
    metrics = json.loads(out[out.index("{") :])
    expected = {
        "shop_ctr/auc",
        "shop_retrieval/hit_rate@1",
        "shop_explanations/bleu_4",
        "shop_titles/novelty",
        "hotels_explanations/fmr",
        "talks_replies/perplexity",
        "talks_replies/bleu_2",
        "talks_titles/recall@1",
        "talks_titles/new/recall@1",
        "talks_retrieval/popularity/new/recall@1",
    }
    assert expected <= set(metrics)


def test_every_loss_is_logged(ran: tuple[Path, dict[str, str]]) -> None:
    lines = [json.loads(line) for line in (ran[0] / "run" / "metrics.jsonl").open()]
    assert any("validation/loss" in line for line in lines)
    # A step of eight rows holds some of the jobs; validation reads all that have such rows.
    for prefix, at_least in (("loss/", 2), ("validation/loss/", 5)):
        named = {name.removeprefix(prefix) for x in lines for name in x if name.startswith(prefix)}
        assert len(named) >= at_least
        assert named <= set(JOBS)


def test_what_was_written_can_be_read(ran: tuple[Path, dict[str, str]]) -> None:
    (path,) = (ran[0] / "run" / "predictions").glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 4
    assert {"text_id", "source", "prefix", "reference", "written", "ended"} <= set(rows[0])
    assert all(row["prefix"] == "SYSTEM:" for row in rows)


def test_requests_are_answered_with_texts(ran: tuple[Path, dict[str, str]]) -> None:
    folder, printed = ran
    rows = [json.loads(line) for line in (folder / "texts.jsonl").open()]
    assert [len(row["texts"]) for row in rows] == [2, 0]
    assert [len(row["log_probabilities"]) for row in rows] == [2, 0]
    (rejected,) = [json.loads(line) for line in (folder / "texts.rejected.jsonl").open()]
    assert rejected["kind"] == "unknown_item"
    assert "2 answered" in printed["requests"]


def test_every_task_is_served_with_its_own_data(ran: tuple[Path, dict[str, str]]) -> None:
    folder, printed = ran
    assert "shop.index: 7 items" in printed["index"]
    ranked = [json.loads(line) for line in (folder / "ranked.jsonl").open()]
    assert [sorted(row["ranking"]) for row in ranked] == [[0, 1], []]
    for row in ranked:
        scores = [row["log_odds"][index] for index in row["ranking"]]
        assert scores == sorted(scores, reverse=True)
    with (folder / "shop" / "items.csv").open() as file:
        wares = {row["sku"]: row["name"] for row in csv.DictReader(file)}
    # The third row's only candidate is unknown; nobody reads it here.
    found = [json.loads(line) for line in (folder / "wares.jsonl").open()]
    everything = set(wares)
    # People buy the same wares again in this shop: what a user had is found, too.
    assert [set(row["item_ids"]) for row in found] == [everything] * 3
    for row in found:
        assert row["titles"] == [wares[sku] for sku in row["item_ids"]]


def test_a_dialogue_in_the_terminal(ran: tuple[Path, dict[str, str]]) -> None:
    lines = ran[1]["chat"].splitlines()
    # What is said is of the grammar, whatever the model.
    offer = r"SYSTEM: (How about|You could try|I recommend) (Fargo|Alien|Big) \(\d{4}\)[.?]"
    assert re.fullmatch(offer, lines[1])
    written = next(line for line in lines if line.startswith("  written: "))
    retrieved = next(line for line in lines if line.startswith("  retrieved: "))
    films = {"Fargo (1996)", "Alien (1979)", "Big (1988)"}
    for line in (written, retrieved):
        # What the user named is not among them, everything else is.
        assert set(line.partition(": ")[2].split(" · ")) == films
