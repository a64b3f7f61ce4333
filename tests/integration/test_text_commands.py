"""Whole commands on a user's own texts and shop, with one vocabulary for both."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.dataset.check import check_dataset
from tests.integration.commands import SHOP, Finished, failed, m6rec_each, succeeded

TASKS = """
from m6rec_jax.pipeline.registration import (
    register_mixture,
    register_recommendation_tasks,
    register_text_tasks,
)

register_recommendation_tasks("shop", dataset="corner-shop")
register_text_tasks("letters", corpus="letters", label_task="mood")
register_mixture("both", ["shop_infilling", "shop_retrieval", "letters_generation"])
"""

VOCABULARY = """
import m6rec_jax.data.rendering.vocabulary_text

train_on_prepared.shared = 'both'
train_on_prepared.sources = (
    ('corner-shop', 'per_user_temporal', ('groups', 'documents')),
    ('letters', 'by_group', ('documents',)),
)
train_vocabulary.size = 500
"""

MODEL = """
include 'gin_configs/models/tiny.gin'

import m6rec_jax.pipeline.locations

vocabulary_file.shared = 'both'
VOCAB_SIZE = 640
"""

PRETRAIN = """
include 'model.gin'
include 'gin_configs/recipes/pretrain.gin'

import m6rec_jax.evaluation.evaluator
import m6rec_jax.pipeline.registration
import tasks.own

MIXTURE_OR_TASK_NAME = 'both'
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 48}
TRAIN_STEPS = 3
WARMUP_STEPS = 1
BATCH_SIZE = 4
BatchIterator.num_shards = 1
BatchIterator.pack = True
mixture_rates.rates = {'letters_generation': 2.0}
PromptConfig.retrieval_dim = 8
total_loss.contrastive_weight = 0.3
Validation.period = 3
Validation.evaluate = @Evaluator()
Evaluator.mixture_or_task_name = 'letters_pretrain'
Evaluator.task_feature_lengths = %TASK_FEATURE_LENGTHS
Logging.tensorboard = False
"""

MOOD = """
include 'model.gin'
include 'gin_configs/tuning/option_adapter.gin'
include 'gin_configs/recipes/scoring.gin'

import tasks.own

MIXTURE_OR_TASK_NAME = 'letters_mood'
NUM_OPTIONS = 2
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 16}
TRAIN_STEPS = 2
WARMUP_STEPS = 1
BATCH_SIZE = 4
EVAL_PERIOD = 2
BatchIterator.num_shards = 1
Logging.tensorboard = False
"""

EVAL = """
include 'model.gin'
include 'gin_configs/commands/eval.gin'

import m6rec_jax.pipeline.preprocessors
import tasks.own

BATCH_SIZE = 4
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 48}
"""


SAMPLE = """
import m6rec_jax.data.dataset.sampling

sample_dataset.users = 3
"""

VOCAB = ["vocab", "train", "--gin_file", "vocabulary.gin"]
SHORT = "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}"
ZERO_SHOT = [
    *("eval", "--gin_file", "eval.gin", "--gin.MODEL_DIR=run"),
    "--gin.MIXTURE_OR_TASK_NAME=shop_zero_shot",
]
OF_MOOD = [
    *("--gin_file", "eval.gin", "--gin.MODEL_DIR=mood", SHORT),
    "--gin.MIXTURE_OR_TASK_NAME=letters_mood",
]
COMMANDS = {
    "shop": ["data", "prepare", "shop"],
    "letters": ["data", "prepare", "letters"],
    "check": ["data", "check", "letters"],
    "vocabulary": VOCAB,
    "not shared": [*VOCAB, "--gin.train_on_prepared.shared=None"],
    "two ways": [*VOCAB, "--gin.train_on_prepared.dataset='corner-shop'"],
    "misspelt": [
        *VOCAB,
        "--gin.train_on_prepared.sources=(('lettres', 'by_group', ('documents',)),)",
    ],
    "sample": ["data", "sample", "shop", "--gin_file", "sample.gin"],
    "train": ["train", "--gin_file", "pretrain.gin", "--gin.MODEL_DIR=run"],
    "no outcomes": ZERO_SHOT,
    "zero-shot": [*ZERO_SHOT, "--gin.likelihood_rows.contrast=('bought', 'not chosen')"],
    "mood": [
        *("train", "--gin_file", "mood.gin", "--gin.MODEL_DIR=mood"),
        "--gin.INITIAL_CHECKPOINT_PATH=run",
    ],
    "eval": ["eval", *OF_MOOD],
    "infer": ["infer", *OF_MOOD],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's, with a shop and letters."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(SHOP, folder / "shop")
    (folder / "letters").mkdir()
    spec = {
        "name": "letters",
        "texts": {"id": "letter", "group": "writer", "text": "words", "label": "mood"},
        "classes": ["sad", "merry"],
        "question": "How is it?",
    }
    (folder / "letters" / "corpus.json").write_text(json.dumps(spec))
    rows = [
        f'l{n},writer {n},"{"What a grey day" if n % 2 else "What a fine day"}. I write.",'
        + ("sad" if n % 2 else "merry")
        for n in range(80)
    ]
    header = "letter,writer,words,mood\n"
    (folder / "letters" / "texts.csv").write_text(header + "\n".join(rows) + "\n")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.py").write_text(TASKS)
    files = {
        "vocabulary": VOCABULARY,
        "model": MODEL,
        "pretrain": PRETRAIN,
        "mood": MOOD,
        "eval": EVAL,
        "sample": SAMPLE,
    }
    for name, text in files.items():
        (folder / f"{name}.gin").write_text(text)
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Finished]:
    """What each command printed."""
    return dict(zip(COMMANDS, m6rec_each(folder, *COMMANDS.values()), strict=True))


def metrics_of(run: Finished) -> dict[str, float]:
    out = succeeded(run)
    metrics: dict[str, float] = json.loads(out[out.index("{") :])
    return metrics


def test_texts_are_checked_and_share_a_vocabulary(ran: dict[str, Finished]) -> None:
    assert "letters: 80 texts" in succeeded(ran["check"])
    assert succeeded(ran["vocabulary"]).strip().endswith("cache/both/vocabulary.model")


def test_validation_gives_the_perplexity_of_each_source(
    folder: Path, ran: dict[str, Finished]
) -> None:
    succeeded(ran["train"])
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
    names = {name for line in lines for name in line}
    assert "validation/letters_generation/perplexity" in names
    assert "validation/letters_infilling/perplexity" in names


def test_zero_shot_needs_no_training(ran: dict[str, Finished]) -> None:
    metrics = metrics_of(ran["zero-shot"])
    assert {"auc", "popularity/auc", "chance/auc", "num_examples"} <= set(metrics)
    assert "two outcomes are needed" in failed(ran["no outcomes"])  # everything was bought


def test_texts_are_classified(folder: Path, ran: dict[str, Finished]) -> None:
    succeeded(ran["mood"])
    metrics = metrics_of(ran["eval"])
    assert {"accuracy", "macro_f1", "auc", "majority_share"} <= set(metrics)
    succeeded(ran["infer"])
    (path,) = (folder / "mood" / "predictions").glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    assert {row["class"] for row in rows} <= {"sad", "merry"}
    assert all(row["text_id"].startswith("l") for row in rows)


def test_a_sample_of_a_shop_is_a_shop(ran: dict[str, Finished]) -> None:
    assert check_dataset(succeeded(ran["sample"]).strip()).ok


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("not shared", "train_on_prepared.shared"),
        ("two ways", "train_on_prepared needs either"),
        ("misspelt", "'letters.by_group'"),
    ],
)
def test_a_vocabulary_of_nothing_is_refused(
    ran: dict[str, Finished], command: str, words: str
) -> None:
    assert words in failed(ran[command])
