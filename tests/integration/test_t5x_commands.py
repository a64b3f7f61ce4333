"""t5x's own commands on the corner shop: train, go on, evaluate, infer; runs that cross over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.checkpoints.t5x_files import open_t5x
from tests.t5x_bridge.needs_t5x import REASON

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

TASK = """
from m6rec_jax.pipeline.registration import register_recommendation_tasks

register_recommendation_tasks("corner_shop", dataset="corner-shop")
"""
PREPARE = """
import m6rec_jax.tables.preparation
import m6rec_jax.tables.vocabulary_text

PrepareOptions.group_size = 2
train_on_prepared.dataset = 'corner-shop'
train_vocabulary.size = 400
"""
SETTINGS = """
import tasks.corner_shop

MIXTURE_OR_TASK_NAME = 'corner_shop_ctr'
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 96}
NUM_OPTIONS = 2
VOCAB_SIZE = 640
BATCH_SIZE = 4
"""
TRAIN = """
DROPOUT_RATE = 0.0
WARMUP_STEPS = 1
EVAL_PERIOD = 100
"""
FOUNDATION = """
TRAINABLE = 'all'
TRAIN_STEPS = 2
BatchIterator.num_shards = 1
train.tensorboard = False
"""
TUNING = """
INITIAL_PROMPTS = 'all'
CHECKPOINT_PERIOD = 2
"""
MODEL = ("models/tiny", "tuning/option_adapter")


# Probabilities of the test rows' candidates by the SavedModel, corrected for sampled negatives.
SCORE_ROWS = """
import json
import numpy as np
import tensorflow as tf
import tasks.corner_shop
from m6rec_jax.evaluation.task_facts import sampling_rate
from m6rec_jax.pipeline.batches import EvaluationBatches
from m6rec_jax.pipeline.features import MODEL_FEATURES
from m6rec_jax.pipeline.registration import task_info
from m6rec_jax.tables.negatives import corrected_probability

score = tf.saved_model.load("exported/1").signatures["serving_default"]
lengths = {"inputs": 96, "targets": 96}
found = []
for batch in EvaluationBatches("corner_shop_ctr", lengths, 3, split="test"):
    out = score(**{name: tf.constant(batch[name]) for name in MODEL_FEATURES})
    places = np.nonzero(batch["decoder_labels"] >= 0)
    p = np.exp(out["log_probabilities"].numpy().astype(float))[(*places, 1)]
    found += corrected_probability(p, sampling_rate(task_info("corner_shop_ctr"))).tolist()
print(json.dumps(found))
"""


def gin_file(includes: tuple[str, ...], *settings: str) -> str:
    return "\n".join([*(f"include 'gin_configs/{name}.gin'" for name in includes), *settings])


FILES = {
    "prepare": PREPARE,
    "foundation": gin_file((*MODEL, "runs/finetune_scoring"), SETTINGS, TRAIN, FOUNDATION),
    "m6rec_eval": gin_file(("runs/eval",), SETTINGS),
    "train": gin_file((*MODEL, "t5x/finetune_scoring"), SETTINGS, TRAIN, TUNING),
    "eval": gin_file((*MODEL, "t5x/eval"), SETTINGS),
    "infer": gin_file((*MODEL, "t5x/infer"), SETTINGS),
    "export": gin_file((*MODEL, "t5x/export"), SETTINGS, "BATCH_SIZE = None"),
}


def run(folder: Path, code: list[str], *arguments: object) -> str:
    finished = subprocess.run(
        [sys.executable, *code, *map(str, arguments)],
        cwd=folder,
        env=os.environ
        | {
            "M6REC_DATA_DIR": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr[-5000:]
    return finished.stdout


def m6rec(folder: Path, *arguments: object) -> str:
    return run(
        folder, ["-c", "import sys; from m6rec_jax.cli import main; sys.exit(main())"], *arguments
    )


def t5x_command(folder: Path, command: str, **settings: str) -> str:
    bindings = [f"--gin.{name}='{value}'" for name, value in settings.items()]
    return run(folder, ["-m", f"t5x.{command}"], f"--gin_file={command}.gin", *bindings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop, a foundation of the built-in trainer, and what t5x made of it in 4 steps."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "tests" / "data" / "shop", folder / "shop")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "corner_shop.py").write_text(TASK)
    for name, text in FILES.items():
        (folder / f"{name}.gin").write_text(text)
    m6rec(folder, "data", "prepare", "shop", "--gin_file", "prepare.gin")
    m6rec(folder, "vocab", "train", "--gin_file", "prepare.gin")
    m6rec(folder, "train", "--gin_file", "foundation.gin", "--gin.MODEL_DIR=foundation")
    m6rec(folder, "convert", "--from", "foundation", "--to", "t5x_bridge:theirs")
    train(folder, "run", 6)
    return folder


def train(folder: Path, name: str, steps: int) -> str:
    """Starts from step 2 of the foundation."""
    return run(
        folder,
        ["-m", "t5x.train"],
        "--gin_file=train.gin",
        f"--gin.MODEL_DIR='{folder / name}'",
        f"--gin.INITIAL_CHECKPOINT_PATH='{folder / 'theirs' / 'checkpoint_2'}'",
        f"--gin.TRAIN_STEPS={steps}",
    )


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    files = open_t5x(checkpoint)
    return {name: files.read(name) for name in files.found}


def test_a_frozen_backbone_stays_and_prompts_train(folder: Path) -> None:
    before, after = tensors(folder / "theirs" / "checkpoint_2"), tensors(folder / "run")
    assert set(before) == set(after)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("target.prompts.") for name in changed)


def test_a_run_that_goes_on_is_the_unbroken_one(folder: Path) -> None:
    train(folder, "broken", 4)
    train(folder, "broken", 6)
    whole, broken = tensors(folder / "run"), tensors(folder / "broken")
    for name, values in whole.items():
        np.testing.assert_array_equal(broken[name], values, err_msg=name)


def test_figures_and_predictions_are_those_of_m6rec(folder: Path) -> None:
    checkpoint = str(folder / "run" / "checkpoint_6")
    t5x_command(
        folder, "eval", CHECKPOINT_PATH=checkpoint, EVAL_OUTPUT_DIR=str(folder / "evaluated")
    )
    (path,) = (folder / "evaluated").rglob("corner_shop_ctr-metrics.jsonl")
    theirs = json.loads(path.read_text().splitlines()[-1])
    m6rec(folder, "convert", "--from", "t5x_bridge:run", "--to", "back")
    out = m6rec(folder, "eval", "--gin_file", "m6rec_eval.gin", "--gin.MODEL_DIR=back")
    ours = json.loads(out[out.index("{") :])
    assert theirs.pop("step") == 6
    assert theirs == pytest.approx(ours, abs=1e-6)

    t5x_command(
        folder, "infer", CHECKPOINT_PATH=checkpoint, INFER_OUTPUT_DIR=str(folder / "inferred")
    )
    (path,) = (folder / "inferred").glob("corner_shop_ctr-score.jsonl-*-00001")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == ours["num_examples"]
    losses = [-np.log(r["probability"] if r["label"] else 1 - r["probability"]) for r in rows]
    assert np.mean(losses) == pytest.approx(ours["log_loss"], abs=1e-5)
    assert {row["user_id"] for row in rows} <= {"ana", "ben", "chi", "dee", "eli"}


def test_an_exported_model_scores_rows(folder: Path) -> None:
    pytest.importorskip("tensorflow_serving", reason="t5x.export needs tensorflow-serving-api")
    import t5x

    run(
        folder,
        ["-m", "t5x.export"],
        "--gin_file=export.gin",
        f"--gin_search_paths=.,{Path(t5x.__path__[0]).parent}",
        f"--gin.CHECKPOINT_PATH='{folder / 'run' / 'checkpoint_6'}'",
        f"--gin.MODEL_OUTPUT_DIR={{'cpu': '{folder / 'exported' / '1'}'}}",
    )
    out = run(folder, ["-c", SCORE_ROWS])
    scored = json.loads(out)
    inferred = folder / "exported_rows"
    checkpoint = str(folder / "run" / "checkpoint_6")
    t5x_command(folder, "infer", CHECKPOINT_PATH=checkpoint, INFER_OUTPUT_DIR=str(inferred))
    (path,) = inferred.glob("corner_shop_ctr-score.jsonl-*-00001")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert scored == pytest.approx([row["probability"] for row in rows], abs=1e-5)
