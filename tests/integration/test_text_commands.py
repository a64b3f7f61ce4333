"""Whole commands on a user's own texts and shop, with one vocabulary for both."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "tests" / "data" / "shop"

TASKS = """
from m6rec_jax.pipeline.registration import register_mixture
from m6rec_jax.pipeline.registration import register_recommendation_tasks
from m6rec_jax.pipeline.registration import register_text_tasks

register_recommendation_tasks("shop", dataset="corner-shop")
register_text_tasks("letters", corpus="letters", label_task="mood")
register_mixture("both", ["shop_infilling", "shop_retrieval", "letters_generation"])
"""

VOCABULARY = """
import m6rec_jax.data.vocabulary_text

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
include 'gin_configs/runs/pretrain.gin'

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
include 'gin_configs/runs/finetune_scoring.gin'

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
include 'gin_configs/runs/eval.gin'

import m6rec_jax.pipeline.preprocessors
import tasks.own

BATCH_SIZE = 4
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 48}
"""


def m6rec(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from m6rec_jax.cli import main; sys.path.pop(0); sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"M6REC_DATA_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def succeeded(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def evaluated(folder: Path, model: str, task: str, *bindings: str) -> dict[str, float]:
    out = succeeded(
        m6rec(
            folder,
            *("eval", "--gin_file", "eval.gin", f"--gin.MODEL_DIR='{model}'"),
            f"--gin.MIXTURE_OR_TASK_NAME='{task}'",
            *bindings,
        )
    )
    figures: dict[str, float] = json.loads(out[out.index("{") :])
    return figures


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shop and letters prepared, a vocabulary of both and a model of three steps."""
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
    }
    for name, text in files.items():
        (folder / f"{name}.gin").write_text(text)
    for name in ("shop", "letters"):
        succeeded(m6rec(folder, "data", "prepare", name))
    out = succeeded(m6rec(folder, "vocab", "train", "--gin_file", "vocabulary.gin"))
    assert out.strip().endswith("cache/both/vocabulary.model")
    succeeded(m6rec(folder, "train", "--gin_file", "pretrain.gin", "--gin.MODEL_DIR='run'"))
    return folder


def test_texts_are_checked(pretrained: Path) -> None:
    out = succeeded(m6rec(pretrained, "data", "check", "letters"))
    assert "letters: 80 texts of 80 groups; 40 sad, 40 merry" in out


def test_validation_tells_the_perplexity_of_each_source(pretrained: Path) -> None:
    lines = [json.loads(line) for line in (pretrained / "run/metrics.jsonl").open()]
    told = {name for line in lines for name in line}
    assert "validation/letters_generation/perplexity" in told
    assert "validation/letters_infilling/perplexity" in told


def test_zero_shot_needs_no_training(pretrained: Path) -> None:
    figures = evaluated(pretrained, "run", "shop_zero_shot")
    assert {"auc", "popularity/auc", "chance/auc", "num_examples"} <= set(figures)
    counted = "--gin.likelihood_rows.counted=('after',)"
    sentence = "--gin.likelihood_rows.sentence='{item} bought'"
    evaluated(pretrained, "run", "shop_zero_shot", sentence, counted)
    run = m6rec(
        pretrained,
        *("eval", "--gin_file", "eval.gin", "--gin.MODEL_DIR='run'"),
        "--gin.MIXTURE_OR_TASK_NAME='shop_zero_shot'",
        "--gin.likelihood_rows.sentence='{title}'",
    )
    assert run.returncode == 2
    assert "exactly one field" in run.stderr


def test_texts_are_classified(pretrained: Path) -> None:
    succeeded(
        m6rec(
            pretrained,
            *("train", "--gin_file", "mood.gin", "--gin.MODEL_DIR='mood'"),
            "--gin.INITIAL_CHECKPOINT_PATH='run'",
        )
    )
    lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}"
    figures = evaluated(pretrained, "mood", "letters_mood", lengths)
    assert {"accuracy", "macro_f1", "auc", "majority_share"} <= set(figures)
    succeeded(
        m6rec(
            pretrained,
            *("infer", "--gin_file", "eval.gin", "--gin.MODEL_DIR='mood'", lengths),
            "--gin.MIXTURE_OR_TASK_NAME='letters_mood'",
        )
    )
    (path,) = (pretrained / "mood" / "predictions").glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    assert {row["class"] for row in rows} <= {"sad", "merry"}
    assert all(row["text_id"].startswith("l") for row in rows)


def test_a_sample_of_a_shop_is_a_shop(pretrained: Path) -> None:
    (pretrained / "sample.gin").write_text(
        "import m6rec_jax.data.sampling\nsample_dataset.users = 3\n"
    )
    out = succeeded(m6rec(pretrained, "data", "sample", "shop", "--gin_file", "sample.gin"))
    checked = succeeded(m6rec(pretrained, "data", "check", out.strip()))
    assert "No errors." in checked


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("--gin.train_on_prepared.shared=None", "belong together"),
        ("--gin.train_on_prepared.dataset='corner-shop'", "either a dataset or sources"),
        (
            "--gin.train_on_prepared.sources=(('lettres', 'by_group', ('documents',)),)",
            "'letters.by_group'",
        ),
    ],
)
def test_a_vocabulary_of_nothing_is_refused(pretrained: Path, binding: str, words: str) -> None:
    run = m6rec(pretrained, "vocab", "train", "--gin_file", "vocabulary.gin", binding)
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr
