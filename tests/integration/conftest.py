"""A user's folder with a shop and a model of it, made once for all files of tests."""

import shutil
from pathlib import Path

import filelock
import pytest

from tests.integration.commands import SHOP, m6rec_each, succeeded

# What a user writes: a task module of their own, in a folder `tasks` of their own.
TASK = """
from m6rec_jax.pipeline.registration import register_mixture, register_recommendation_tasks

register_recommendation_tasks("corner_shop", dataset="corner-shop")
register_mixture("corner_shop_tasks", ["corner_shop_ctr", "corner_shop_retrieval"])
"""

PREPARE = """
import m6rec_jax.data.prepare
import m6rec_jax.data.rendering.vocabulary_text

PrepareOptions.group_size = 2
train_on_prepared.dataset = 'corner-shop'
train_vocabulary.size = 400
"""

# One model for both jobs: it has a head and projections.
TRAIN = """
include 'gin_configs/models/tiny.gin'
include 'gin_configs/tuning/option_adapter.gin'
include 'gin_configs/recipes/scoring.gin'

import tasks.corner_shop

MIXTURE_OR_TASK_NAME = 'corner_shop_ctr'
NUM_OPTIONS = 2
VOCAB_SIZE = 640
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 96}
TRAINABLE = 'all'
TRAIN_STEPS = 3
WARMUP_STEPS = 1
BATCH_SIZE = 4
EVAL_PERIOD = 3
PromptConfig.retrieval_dim = 8
BatchIterator.num_shards = 1
Logging.tensorboard = False
"""


@pytest.fixture(scope="session")
def shop_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The shop prepared, a vocabulary, a model trained for three steps. Tests copy the folder."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent  # of all workers
    folder = base / "shop_run"
    with filelock.FileLock(base / "shop_run.lock"):
        if not (folder / "train.stderr").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    shutil.copytree(SHOP, folder / "shop")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "corner_shop.py").write_text(TASK)
    (folder / "prepare.gin").write_text(PREPARE)
    (folder / "train.gin").write_text(TRAIN)
    *preparing, training = m6rec_each(
        folder,
        ["data", "prepare", "shop", "--gin_file", "prepare.gin"],
        ["vocab", "train", "--gin_file", "prepare.gin"],
        ["train", "--gin_file", "train.gin", "--gin.MODEL_DIR=run"],
    )
    for run in (*preparing, training):
        succeeded(run)
    (folder / "prepare.stderr").write_text("".join(run.stderr for run in preparing))
    (folder / "train.stderr").write_text(training.stderr)
