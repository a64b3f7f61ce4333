"""Runs that learn from a teacher: found again when resumed, and in no checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.config import PromptConfig
from m6rec_jax.objectives.distillation import Distillation
from tests.training.toy_run import toy_config, toy_train

FINGERPRINT = "a" * 64


def train(folder: Path, steps: int, **changes: Any) -> Any:
    return toy_train(folder, steps, vocabulary_fingerprint=FINGERPRINT, **changes)[0]


def test_a_teacher_is_found_again(tmp_path: Path) -> None:
    wide = toy_config(embed_dim=24, num_encoder_layers=2, prompts=PromptConfig())
    teacher, _ = (
        train(tmp_path / name, 1, model=wide, seed=seed)
        for name, seed in (("teacher", 1), ("other", 2))
    )
    distillation = Distillation(str(tmp_path / "teacher"), vocabulary_weight=0.5)
    student: dict[str, Any] = {"distillation": distillation, "eval_period": 2}
    unbroken = train(tmp_path / "unbroken", 4, **student)
    train(tmp_path / "resumed", 2, **student)
    resumed = train(tmp_path / "resumed", 4, **student)
    for name, leaf in flatten(unbroken.state.variables).items():
        np.testing.assert_array_equal(flatten(resumed.state.variables)[name], leaf, err_msg=name)
    assert unbroken.metrics == {
        **resumed.metrics,
        **{name: unbroken.metrics[name] for name in unbroken.metrics if "per_second" in name},
    }
    assert unbroken.metrics["distillation/encoder_relations"] > 0
    assert unbroken.metrics["validation/loss"] > 0
    # The teacher is as it was, and not in the student's checkpoint.
    taught = unbroken.state.fixed["teacher"]["params"]
    jax.tree.map(np.testing.assert_array_equal, taught, teacher.state.params)
    manifest = read_manifest(locate(tmp_path / "unbroken"))
    assert set(manifest.tensors) <= {"params", "prompts", "optimizer", "data"}
    assert set(flatten(resumed.state.params)) == set(manifest.tensors["params"])

    other = dataclasses.replace(distillation, teacher=str(tmp_path / "other"))
    for changed, message in (
        (other, "the teacher of fingerprint"),
        (None, "now there is no teach"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(tmp_path / "resumed", 6, distillation=changed)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        toy_train(tmp_path / "new", 1, vocabulary_fingerprint="b" * 64, distillation=other)
