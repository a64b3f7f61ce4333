"""A model of a shop with repeats, from its tables to metrics, beside the best possible one."""

import json
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.metrics import classification
from m6rec_jax.pipeline.prepared_rows import read_rows
from tests.data.conftest import write_shop
from tests.data.repeat_shop import DAY, TEMPLATE, RepeatShop
from tests.integration.commands import m6rec, m6rec_each, succeeded

__all__ = ["write_shop"]

PREPARE = """
import m6rec_jax.data.prepare
import m6rec_jax.data.rendering.vocabulary_text

prepare.split = 'leave_one_out'
PrepareOptions.group_size = 5
PrepareOptions.negative_power = 0.0
PrepareOptions.max_events = 8
train_on_prepared.dataset = 'shop'
train_on_prepared.split = 'leave_one_out'
train_vocabulary.size = 500
"""
TASK = """
import tasks.own_data

MIXTURE_OR_TASK_NAME = @own_task()
own_task.dataset = 'shop'
own_task.split = 'leave_one_out'
own_task.kind = 'ctr'
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 128}
"""
TRAIN = f"""
include 'gin_configs/models/mini.gin'
include 'gin_configs/tuning/full.gin'
include 'gin_configs/recipes/scoring.gin'
{TASK}
NUM_OPTIONS = 2
VOCAB_SIZE = 640
TRAIN_STEPS = 900
EVAL_PERIOD = 300
LEARNING_RATE = 3e-3
BATCH_SIZE = 32
Logging.tensorboard = False
"""
EVAL = f"include 'gin_configs/commands/eval.gin'\n{TASK}"


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a training run, from random weights
def test_a_scorer_comes_near_the_best_possible(write_shop, tmp_path: Path) -> None:
    shop = RepeatShop.made(1200, 120, 20)
    write_shop(
        shop.events,
        num_users=len(shop.items),
        num_items=120,
        labelled=False,
        template=TEMPLATE,
        statistics={"by": []},
        repeats="count",
    )
    for name, text in (("prepare", PREPARE), ("train", TRAIN), ("eval", EVAL)):
        (tmp_path / f"{name}.gin").write_text(text)
    for run in m6rec_each(
        tmp_path,
        ["data", "prepare", "shop", "--gin_file", "prepare.gin"],
        ["vocab", "train", "--gin_file", "prepare.gin"],
    ):
        succeeded(run)
    train = ("train", "--gin_file", "train.gin", "--gin.MODEL_DIR=run")
    succeeded(m6rec(tmp_path, *train, timeout=3_000))
    out = succeeded(m6rec(tmp_path, "eval", "--gin_file", "eval.gin", "--gin.MODEL_DIR=run"))
    metrics = json.loads(out[out.index("{") :])
    columns: dict[str, list[np.ndarray]] = {"best": [], "label": [], "had": []}
    for row in read_rows(
        Prepared.open(tmp_path / "cache", "shop", "leave_one_out"), "groups", "test"
    ):
        user, items, day = row["user_index"], row["item_indices"], int(row["time"] // DAY)
        columns["best"].append(shop.best_scores(user, day, items))
        columns["label"].append(row["labels"])
        columns["had"].append(np.isin(items, shop.items[user, :day]))
    best, labels, had = (np.concatenate(columns[name]) for name in ("best", "label", "had"))
    # What is known of one kind alone is less, on fewer rows.
    kinds = (("", had | ~had, 0.02), ("repeats/", had, 0.03), ("new_items/", ~had, 0.03))
    for kind, rows, distance in kinds:
        possible = classification.auc(labels[rows], best[rows])
        assert metrics[f"{kind}auc"] > possible - distance, (kind, metrics, possible)
    for kind in ("", "repeats/"):
        assert metrics[f"{kind}auc"] > metrics[f"user_item_times/{kind}auc"]
