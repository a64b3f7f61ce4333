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

from m6rec_jax.checkpoints.t5x_files import checkpoint_folder, read_t5x_files
from m6rec_jax.data.splitting.negatives import corrected_probability
from m6rec_jax.data.store.manifest import Manifest
from tests.integration.commands import ROOT, SHOP, m6rec_each, succeeded
from tests.integration.page import commands, follow
from tests.integration.test_pages import T5X, before_t5x
from tests.t5x_bridge.needs_t5x import REASON

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)
pytestmark = pytest.mark.timeout(1800)

TASK = """
from m6rec_jax.pipeline.registration import register_generation_tasks

register_generation_tasks("corner_shop", "corner-shop-titles", views=("titles",))
"""
TITLES = {"titles": {"prefix": "{kinds}:", "text": "{name}"}}
WRITE = """
include 'gin_configs/models/tiny.gin'
include 'gin_configs/tuning/option_adapter.gin'
include 'gin_configs/t5x/finetune.gin'
include 'gin_configs/objectives/writing.gin'
include 'shop.gin'
import tasks.corner_shop
import m6rec_jax.pipeline.locations

vocabulary_file.path = 'cache/corner-shop.per_user_temporal/vocabulary.model'
MIXTURE_OR_TASK_NAME = 'corner_shop_titles'
NUM_OPTIONS = 0
WARMUP_STEPS = 1
EVAL_PERIOD = 2
EVAL_LIMIT = 4
"""
# t5x counts from the step of the foundation.
FOUNDATION, HALF, WHOLE = 20, 45, 70


# Probabilities of the test rows' candidates by the SavedModel.
SCORE_ROWS = """
import json
import numpy as np
import tensorflow as tf
import tasks.own_data
from m6rec_jax.pipeline.batches import EvaluationBatches
from m6rec_jax.pipeline.features import MODEL_FEATURES

tasks.own_data.own_task("corner-shop", "ctr")
score = tf.saved_model.load("exported/1").signatures["serving_default"]
lengths = {"inputs": 96, "targets": 96}
found = []
for batch in EvaluationBatches("corner_shop_ctr", lengths, 3, split="test"):
    out = score(**{name: tf.constant(batch[name]) for name in MODEL_FEATURES})
    positions = np.nonzero(batch["decoder_labels"] >= 0)
    found += np.exp(out["log_probabilities"].numpy().astype(float))[(*positions, 1)].tolist()
print(json.dumps(found))
"""


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where docs/t5x.md was followed to its end, but for the export."""
    folder = tmp_path_factory.mktemp("user")
    before_t5x(folder)
    follow([one for one in commands(T5X) if "t5x.export" not in one.text], folder)
    return folder


def t5x_train(folder: Path, name: str, steps: int, file: str = "train") -> None:
    """Starts from the foundation, or resumes."""
    run(
        folder,
        ["-m", "t5x.train"],
        f"--gin_file={file}.gin",
        f"--gin.MODEL_DIR='{folder / name}'",
        f"--gin.INITIAL_CHECKPOINT_PATH='{folder}/foundation_t5x/checkpoint_{FOUNDATION}'",
        f"--gin.TRAIN_STEPS={steps}",
    )


@pytest.fixture(scope="module")
def probabilities(folder: Path) -> list[dict[str, Any]]:
    """Rows that t5x.infer wrote."""
    (path,) = (folder / "inferred").glob("corner_shop_ctr-score.jsonl-*-00001")
    return [json.loads(line) for line in path.read_text().splitlines()]


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    return read_t5x_files(checkpoint_folder(checkpoint))


def test_a_run_that_goes_on_is_the_unbroken_one(folder: Path) -> None:
    t5x_train(folder, "broken", HALF)
    t5x_train(folder, "broken", WHOLE)
    whole, broken = (tensors(folder / name) for name in ("ctr", "broken"))
    for name, values in whole.items():
        np.testing.assert_array_equal(broken[name], values, err_msg=name)


def test_metrics_and_predictions_are_those_of_m6rec(
    folder: Path, probabilities: list[dict[str, Any]]
) -> None:
    (path,) = (folder / "evaluated").rglob("corner_shop_ctr-metrics.jsonl")
    theirs = json.loads(path.read_text().splitlines()[-1])
    shared = ["--gin_file", "m6rec_eval.gin", "--gin.MODEL_DIR=ctr_m6rec"]
    inferred = folder / "inferred.jsonl"
    out = m6rec(folder, ["infer", *shared, "--output", str(inferred)], ["eval", *shared])
    ours = json.loads(out[out.index("{") :])
    assert theirs.pop("step") == WHOLE
    # t5x has no place for baselines, which `m6rec eval` prints beside its metrics.
    assert theirs == pytest.approx({name: ours[name] for name in theirs}, abs=1e-6)
    assert {"auc", "log_loss"} <= set(theirs)

    assert len(probabilities) == ours["num_examples"]
    for row, own in zip(probabilities, inferred.read_text().splitlines(), strict=True):
        assert row == pytest.approx(json.loads(own), abs=1e-5)
    assert {row["user_id"] for row in probabilities} <= {"ana", "ben", "chi", "dee", "eli"}


def test_a_task_that_writes(folder: Path) -> None:
    """Trained as language, evaluated by what it writes."""
    shutil.copytree(SHOP, folder / "titles")
    spec = json.loads((folder / "titles" / "dataset.json").read_text())
    spec["name"], spec["template"]["writing"] = "corner-shop-titles", TITLES
    (folder / "titles" / "dataset.json").write_text(json.dumps(spec))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "corner_shop.py").write_text(TASK)
    (folder / "write.gin").write_text(WRITE)
    m6rec(folder, ["data", "prepare", "titles", "--gin.PrepareOptions.views=('titles',)"])
    t5x_train(folder, "writes", FOUNDATION + 2, file="write")
    (path,) = (folder / "writes" / "inference_eval").glob("corner_shop_titles-metrics.jsonl")
    metrics = json.loads(path.read_text().splitlines()[-1])
    assert metrics["step"] == FOUNDATION + 2
    assert 1 < metrics["perplexity"] < 1e6
    assert "bleu" in " ".join(metrics)


def test_an_exported_model_scores_rows(folder: Path, probabilities: list[dict[str, Any]]) -> None:
    pytest.importorskip("tensorflow_serving", reason="t5x.export needs tensorflow-serving-api")
    follow([one for one in commands(T5X) if "t5x.export" in one.text], folder)
    # Of the rows as sampled; t5x.infer corrects them, those of repeats by a rate of their own.
    scored = np.array(json.loads(run(folder, ["-c", SCORE_ROWS])))
    (manifest,) = (folder / "cache").glob("corner-shop.*/prepare.json")
    rates = Manifest.read(manifest.parent).views["groups"].negatives.values()
    served = [row["probability"] for row in probabilities]
    apart = [np.abs(corrected_probability(scored, rate) - served) for rate in rates]
    np.testing.assert_allclose(np.min(apart, axis=0), 0, atol=1e-5)
