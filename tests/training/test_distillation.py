"""Runs that learn from a teacher: found again when resumed, and in no checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.checkpoints.huggingface import write_huggingface
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.convert import convert
from m6rec_jax.engine.programs.packed_file import quantized_variables
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.config import PromptConfig
from m6rec_jax.objectives.distillation import Distillation
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.pruning import gradual_pruning
from tests.checkpoints.t5_weights import T5_1_1, random_weights
from tests.training.toy_run import toy_config, toy_train

FINGERPRINT = "a" * 64


def train(folder: Path, steps: int, **changes: Any) -> Any:
    return toy_train(folder, steps, vocabulary_fingerprint=FINGERPRINT, **changes)[0]


def test_a_teacher_is_found_again(tmp_path: Path) -> None:
    wide = toy_config(embed_dim=24, num_encoder_layers=2, prompts=PromptConfig())
    teacher = train(tmp_path / "teacher", 1, model=wide, seed=1)
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
    manifest = open_checkpoint(tmp_path / "unbroken").manifest
    assert set(manifest.tensors) <= {"params", "prompts", "optimizer", "data"}
    assert set(flatten(resumed.state.params)) == set(manifest.tensors["params"])

    other = dataclasses.replace(distillation, teacher=str(tmp_path / "unbroken"))
    for changed, message in (
        (other, "a teacher of fingerprint"),
        (None, "now it is None"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(tmp_path / "resumed", 6, distillation=changed)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        toy_train(tmp_path / "new", 1, vocabulary_fingerprint="b" * 64, distillation=other)


def test_a_converted_t5_teaches(shop_vocabulary: Any, tmp_path: Path) -> None:
    weights = random_weights(T5_1_1.replace(vocab_size=shop_vocabulary.size))
    write_huggingface(weights, tmp_path / "t5")
    teacher, file = tmp_path / "teacher", Path(shop_vocabulary.model_file)
    convert(f"huggingface:{tmp_path / 't5'}", str(teacher), vocabulary_file=file)
    found, _ = toy_train(
        tmp_path / "student",
        1,
        model=toy_config(vocab_size=weights.config.vocab_size),
        distillation=Distillation(str(teacher), vocabulary_weight=0.5),
        vocabulary_fingerprint=shop_vocabulary.fingerprint,
        eval_period=1,
    )
    terms = ("encoder_relations", "decoder_relations", "vocabulary")
    assert all(0 < found.metrics[f"distillation/{term}"] < np.inf for term in terms)
    taught = flatten(found.state.fixed["teacher"]["params"])
    for name, leaf in weights.leaves.items():
        if "layers" in name:
            np.testing.assert_array_equal(taught[name], leaf, err_msg=name)


def test_a_teacher_pruning_and_few_bits_go_together(tmp_path: Path) -> None:
    teacher = train(tmp_path / "teacher", 1, seed=1)
    student = train(
        tmp_path / "student",
        6,
        distillation=Distillation(str(tmp_path / "teacher"), vocabulary_weight=0.5),
        weight_bits=4,
        optimizer=gradual_pruning(adamw(3e-3), end_step=4),
    )
    assert 0 < student.metrics["distillation/vocabulary"] < np.inf
    # What is pruned stays zero in a packed file; the teacher is neither rounded nor pruned.
    weights = flatten(student.state.variables)
    for name, leaf in flatten(quantized_variables(student.state.variables, 4)).items():
        if leaf.dtype == np.int8:
            assert float(np.mean(weights[name] == 0)) == pytest.approx(0.8, abs=0.02), name
            assert not np.asarray(leaf)[np.asarray(weights[name]) == 0].any(), name
    taught = student.state.fixed["teacher"]["params"]
    jax.tree.map(np.testing.assert_array_equal, taught, teacher.state.params)
