"""Whole commands on a user's own shop: from CSV files to predictions, and how they fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.io.locks import locked_folder

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "tests" / "data" / "shop"

# What a user writes: a task module of their own, in a folder `tasks` of their own.
TASK = """
from m6rec_jax.pipeline.registration import register_recommendation_tasks

register_recommendation_tasks("corner_shop", dataset="corner-shop")
"""

PREPARE = """
import m6rec_jax.data.prepare
import m6rec_jax.data.vocabulary_text

PrepareOptions.group_size = 2
train_on_prepared.dataset = 'corner-shop'
train_vocabulary.size = 400
"""

TRAIN = """
include 'gin_configs/models/tiny.gin'
include 'gin_configs/tuning/option_adapter.gin'
include 'gin_configs/runs/finetune_scoring.gin'

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
BatchIterator.num_shards = 1
train.tensorboard = False
"""

EVAL = """
include 'gin_configs/runs/eval.gin'

import tasks.corner_shop

MIXTURE_OR_TASK_NAME = 'corner_shop_ctr'
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 96}
BATCH_SIZE = 4
"""


def m6rec(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command in `folder`, the way the console script does."""
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shop prepared, a vocabulary, and a model trained for three steps."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(SHOP, folder / "shop")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "corner_shop.py").write_text(TASK)
    for name, text in (("prepare", PREPARE), ("train", TRAIN), ("eval", EVAL)):
        (folder / f"{name}.gin").write_text(text)
    succeeded(m6rec(folder, "data", "prepare", "shop", "--gin_file", "prepare.gin"))
    succeeded(m6rec(folder, "vocab", "train", "--gin_file", "prepare.gin"))
    succeeded(m6rec(folder, "train", "--gin_file", "train.gin", "--gin.MODEL_DIR=run"))
    return folder


def test_check_accepts_the_shop() -> None:
    out = succeeded(m6rec(SHOP.parent, "data", "check", "shop"))
    assert "20 events" in out
    assert "No errors." in out


def test_eval_and_infer(trained: Path) -> None:
    out = succeeded(m6rec(trained, "eval", "--gin_file", "eval.gin", "--gin.MODEL_DIR=run"))
    figures = json.loads(out[out.index("{") :])
    assert 0.0 <= figures["auc"] <= 1.0
    assert figures["log_loss"] > 0.0
    succeeded(m6rec(trained, "infer", "--gin_file", "eval.gin", "--gin.MODEL_DIR=run"))
    (path,) = (trained / "run" / "predictions").glob("*.parquet")
    table = pq.read_table(path)
    assert {"user_id", "item_id", "label", "probability"} <= set(table.column_names)
    assert set(table.column("user_id").to_pylist()) <= {"ana", "ben", "chi", "dee", "eli"}
    assert all(0.0 <= p <= 1.0 for p in table.column("probability").to_pylist())


def test_a_model_folder_is_loaded_by_itself(trained: Path, tmp_path: Path) -> None:
    """Moved to another place, without the data it was trained on."""
    shutil.copytree(trained / "run", tmp_path / "moved")
    loaded = load_model(tmp_path / "moved")
    assert loaded.template() is not None
    assert loaded.settings.tasks["corner_shop_ctr"].positive_classes == (1,)


def test_same_command_resumes(trained: Path) -> None:
    arguments = ("train", "--gin_file", "train.gin", "--gin.MODEL_DIR=run", "--gin.TRAIN_STEPS=5")
    run = m6rec(trained, *arguments)
    succeeded(run)
    assert "(saved -> now): TRAIN_STEPS: 3 -> 5\n" in run.stderr
    steps = [json.loads(line)["step"] for line in (trained / "run/metrics.jsonl").open()]
    assert max(steps) == 5
    assert steps == sorted(steps)


def test_a_second_run_stays_out_of_a_folder(trained: Path) -> None:
    with locked_folder(trained / "run", "here"):
        message = failed(m6rec(trained, "train", "--gin_file", "train.gin", "--gin.MODEL_DIR=run"))
    assert "another process is training in run" in message


def test_params(trained: Path) -> None:
    out = succeeded(m6rec(trained, "params", "--gin_file", "train.gin", "--gin.MODEL_DIR=x"))
    assert "soft prompts" in out
    assert "of the backbone" in out


def failed(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_unknown_gin_binding(trained: Path) -> None:
    message = failed(m6rec(trained, "train", "--gin_file", "train.gin", "--gin.train.train_step=5"))
    assert "train_step" in message
    assert "train_steps" in message  # the closest name that exists


def test_missing_gin_file(trained: Path) -> None:
    assert "trian.gin" in failed(m6rec(trained, "train", "--gin_file", "trian.gin"))


def test_checkpoint_of_another_size(trained: Path) -> None:
    message = failed(
        m6rec(
            trained,
            "train",
            *("--gin_file", "train.gin", "--gin.MODEL_DIR=other"),
            *("--gin.INITIAL_CHECKPOINT_PATH=run", "--gin.ModelConfig.embed_dim=48"),
        )
    )
    assert "32" in message
    assert "48" in message


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("events.csv", b"customer,sku", b"client,sku", ("events.csv", "customer", "client")),
        ("items.csv", b"name", b"na\xff\xfeme", ("items.csv", "UTF-8")),
        ("dataset.json", b'"train": 0.6', b'"train": 0.0', ("per_user_temporal",)),
    ],
    ids=["missing column", "invalid UTF-8", "empty split"],
)
def test_bad_data(
    tmp_path: Path, file: str, old: bytes, new: bytes, words: tuple[str, ...]
) -> None:
    shutil.copytree(SHOP, tmp_path / "shop")
    path = tmp_path / "shop" / file
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    message = failed(m6rec(tmp_path, "data", "prepare", "shop"))
    for word in words:
        assert word in message
    assert "configurable" not in message  # whose settings it was about helps nobody


@pytest.mark.parametrize("action", ["check", "prepare"])
def test_a_folder_that_nothing_describes(tmp_path: Path, action: str) -> None:
    message = failed(m6rec(tmp_path, "data", action, tmp_path))
    for name in ("dataset.json", "corpus.json", "dialogues.json", "reviews.json"):
        assert name in message
    assert "--quarantine" not in message
    assert "nothing is not a folder" in failed(m6rec(tmp_path, "data", action, "nothing"))


def test_truncated_parquet(tmp_path: Path) -> None:
    shutil.copytree(SHOP, tmp_path / "shop")
    from pyarrow import csv

    table = csv.read_csv(tmp_path / "shop" / "events.csv")
    (tmp_path / "shop" / "events.csv").unlink()
    path = tmp_path / "shop" / "events.parquet"
    pq.write_table(table, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "events.parquet" in failed(m6rec(tmp_path, "data", "prepare", "shop"))


def test_help_is_quick_and_doctor_reports() -> None:
    assert "data" in succeeded(m6rec(ROOT, "--help"))
    assert "devices" in succeeded(m6rec(ROOT, "doctor"))
