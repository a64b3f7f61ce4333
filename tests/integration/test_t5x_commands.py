"""t5x's own commands on the corner shop: train, resume, evaluate, infer; runs that cross over.

Every process imports t5x, seqio and tensorflow, so what can be asserted of one is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax.checkpoints.t5x_files import open_t5x
from tests.integration.commands import ROOT, SHOP, m6rec_each, succeeded
from tests.t5x_bridge.needs_t5x import REASON

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)

TASK = """
from m6rec_jax.pipeline.registration import (
    register_generation_tasks,
    register_recommendation_tasks,
)

register_recommendation_tasks("corner_shop", dataset="corner-shop")
register_generation_tasks("corner_shop", "corner-shop", views=("titles",))
"""
PREPARE = """
import m6rec_jax.data.prepare
import m6rec_jax.data.vocabulary_text

PrepareOptions.group_size = 2
PrepareOptions.views = ('groups', 'next_items', 'documents', 'catalogue', 'titles')
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
BUILT_IN = """
BatchIterator.num_shards = 1
Logging.tensorboard = False
"""
FOUNDATION = """
TRAINABLE = 'all'
TRAIN_STEPS = 2
"""
TUNED_THERE = """
INITIAL_PROMPTS = 'all'
CHECKPOINT_PERIOD = 25
"""
TITLES = {"titles": {"prefix": "{kinds}:", "text": "{name}"}}
WRITES = """
MIXTURE_OR_TASK_NAME = 'corner_shop_titles'
NUM_OPTIONS = 0
EVAL_PERIOD = 2
EVAL_LIMIT = 4
"""
# t5x counts from the step of the foundation, 2.
HALF, WHOLE = 27, 52
MODEL = ("models/tiny", "tuning/option_adapter")
BUILT_IN_RUN = (*MODEL, "runs/finetune_scoring")


# Probabilities of the test rows' candidates by the SavedModel.
SCORE_ROWS = """
import json
import numpy as np
import tensorflow as tf
import tasks.corner_shop
from m6rec_jax.pipeline.evaluation_batches import EvaluationBatches
from m6rec_jax.pipeline.features import MODEL_FEATURES

score = tf.saved_model.load("exported/1").signatures["serving_default"]
lengths = {"inputs": 96, "targets": 96}
found = []
for batch in EvaluationBatches("corner_shop_ctr", lengths, 3, split="test"):
    out = score(**{name: tf.constant(batch[name]) for name in MODEL_FEATURES})
    positions = np.nonzero(batch["decoder_labels"] >= 0)
    found += np.exp(out["log_probabilities"].numpy().astype(float))[(*positions, 1)].tolist()
print(json.dumps(found))
"""


def gin_file(includes: tuple[str, ...], *settings: str) -> str:
    return "\n".join([*(f"include 'gin_configs/{name}.gin'" for name in includes), *settings])


FILES = {
    "prepare": PREPARE,
    "foundation": gin_file(BUILT_IN_RUN, SETTINGS, TRAIN, BUILT_IN, FOUNDATION),
    "m6rec_eval": gin_file(("runs/eval",), SETTINGS),
    "train": gin_file((*MODEL, "t5x/finetune_scoring"), SETTINGS, TRAIN, TUNED_THERE),
    "write": gin_file((*MODEL, "t5x/finetune_generation"), SETTINGS, TRAIN, WRITES),
    "eval": gin_file((*MODEL, "t5x/eval"), SETTINGS),
    "infer": gin_file((*MODEL, "t5x/infer"), SETTINGS),
    "export": gin_file((*MODEL, "t5x/export"), SETTINGS, "BATCH_SIZE = None"),
}


def run(folder: Path, code: list[str], *arguments: object) -> str:
    """What a program printed."""
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
    assert not finished.returncode, finished.stdout + finished.stderr[-5000:]
    return finished.stdout


def m6rec(folder: Path, *commands: list[str]) -> str:
    return "".join(map(succeeded, m6rec_each(folder, *commands)))


def t5x_command(folder: Path, command: str, **settings: str) -> None:
    bindings = [f"--gin.{name}='{value}'" for name, value in settings.items()]
    run(folder, ["-m", f"t5x.{command}"], f"--gin_file={command}.gin", *bindings)


def t5x_train(folder: Path, name: str, steps: int, file: str = "train") -> None:
    """Starts from step 2 of the foundation, or resumes."""
    run(
        folder,
        ["-m", "t5x.train"],
        f"--gin_file={file}.gin",
        f"--gin.MODEL_DIR='{folder / name}'",
        f"--gin.INITIAL_CHECKPOINT_PATH='{folder / 'theirs' / 'checkpoint_2'}'",
        f"--gin.TRAIN_STEPS={steps}",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop and a foundation of the built-in trainer."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(SHOP, folder / "shop")
    spec = json.loads((folder / "shop" / "dataset.json").read_text())
    spec["template"]["writing"] = TITLES
    (folder / "shop" / "dataset.json").write_text(json.dumps(spec))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "corner_shop.py").write_text(TASK)
    for name, text in FILES.items():
        (folder / f"{name}.gin").write_text(text)
    m6rec(
        folder,
        ["data", "prepare", "shop", "--gin_file", "prepare.gin"],
        ["vocab", "train", "--gin_file", "prepare.gin"],
        ["train", "--gin_file", "foundation.gin", "--gin.MODEL_DIR=foundation"],
        ["convert", "--from", "foundation", "--to", "t5x_bridge:theirs"],
    )
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """Of 50 steps under t5x."""
    t5x_train(folder, "run", WHOLE)
    return folder / "run"


@pytest.fixture(scope="module")
def probabilities(folder: Path, trained: Path) -> list[dict[str, Any]]:
    """Rows that t5x.infer wrote of them."""
    checkpoint = str(trained / f"checkpoint_{WHOLE}")
    t5x_command(
        folder, "infer", CHECKPOINT_PATH=checkpoint, INFER_OUTPUT_DIR=str(folder / "inferred")
    )
    (path,) = (folder / "inferred").glob("corner_shop_ctr-score.jsonl-*-00001")
    return [json.loads(line) for line in path.read_text().splitlines()]


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    files = open_t5x(checkpoint)
    return {name: files.read(name) for name in files.found}


def test_a_run_that_goes_on_is_the_unbroken_one(folder: Path, trained: Path) -> None:
    t5x_train(folder, "broken", HALF)
    t5x_train(folder, "broken", WHOLE)
    whole, broken = tensors(trained), tensors(folder / "broken")
    for name, values in whole.items():
        np.testing.assert_array_equal(broken[name], values, err_msg=name)


def test_metrics_and_predictions_are_those_of_m6rec(
    folder: Path, probabilities: list[dict[str, Any]]
) -> None:
    checkpoint = str(folder / "run" / f"checkpoint_{WHOLE}")
    t5x_command(
        folder, "eval", CHECKPOINT_PATH=checkpoint, EVAL_OUTPUT_DIR=str(folder / "evaluated")
    )
    (path,) = (folder / "evaluated").rglob("corner_shop_ctr-metrics.jsonl")
    theirs = json.loads(path.read_text().splitlines()[-1])
    out = m6rec(
        folder,
        ["convert", "--from", "t5x_bridge:run", "--to", "back"],
        ["eval", "--gin_file", "m6rec_eval.gin", "--gin.MODEL_DIR=back"],
    )
    ours = json.loads(out[out.index("{") :])
    assert theirs.pop("step") == WHOLE
    # t5x has no place for baselines, which `m6rec eval` prints beside its metrics.
    metrics = {name: value for name, value in ours.items() if "/" not in name}
    assert theirs == pytest.approx(metrics, abs=1e-6)

    assert len(probabilities) == ours["num_examples"]
    losses = [
        -np.log(row["probability"] if row["label"] else 1 - row["probability"])
        for row in probabilities
    ]
    assert np.mean(losses) == pytest.approx(ours["log_loss"], abs=1e-5)
    assert {row["user_id"] for row in probabilities} <= {"ana", "ben", "chi", "dee", "eli"}


def test_a_task_that_writes(folder: Path) -> None:
    """Trained as language, evaluated by what it writes."""
    t5x_train(folder, "writes", 4, file="write")
    (path,) = (folder / "writes" / "inference_eval").glob("corner_shop_titles-metrics.jsonl")
    metrics = json.loads(path.read_text().splitlines()[-1])
    assert metrics["step"] == 4
    assert 1 < metrics["perplexity"] < 1e6
    assert "bleu" in " ".join(metrics)


def test_an_exported_model_scores_rows(folder: Path, probabilities: list[dict[str, Any]]) -> None:
    pytest.importorskip("tensorflow_serving", reason="t5x.export needs tensorflow-serving-api")
    import t5x

    run(
        folder,
        ["-m", "t5x.export"],
        "--gin_file=export.gin",
        f"--gin_search_paths=.,{Path(t5x.__path__[0]).parent}",
        f"--gin.CHECKPOINT_PATH='{folder / 'run' / f'checkpoint_{WHOLE}'}'",
        f"--gin.MODEL_OUTPUT_DIR={{'cpu': '{folder / 'exported' / '1'}'}}",
    )
    scored = json.loads(run(folder, ["-c", SCORE_ROWS]))
    assert scored == pytest.approx([row["probability"] for row in probabilities], abs=1e-5)
