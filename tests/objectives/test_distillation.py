"""What a student learns from a teacher, against loops over numpy's float64."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import Loss, mean_loss
from m6rec_jax.objectives.distillation import (
    TEACHER,
    Distillation,
    check_teacher,
    with_teacher,
)
from m6rec_jax.objectives.total import total_loss
from tests.objectives.conftest import CONFIG, Features, made

# A teacher of another width, depth, number of heads and of soft prompts.
WIDE = ModelConfig(
    vocab_size=26,
    embed_dim=12,
    num_encoder_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    head_dim=4,
    mlp_dim=10,
    prompts=PromptConfig(num_prompts=5, num_options=3, head="option", retrieval_dim=4),
)
OBJECTIVES = functools.partial(
    total_loss, language_modelling_weight=1.0, classification_weight=0.5, contrastive_weight=0.2
)
EVERYTHING: dict[str, float] = {
    "relation_weight": 0.7,
    "vocabulary_weight": 0.5,
    "class_weight": 0.3,
    "similarity_weight": 0.2,
}


@pytest.fixture(scope="module")
def batch(features: Features) -> Features:
    """Packed documents, and padding at the end of both sides."""
    source = np.array(
        [[1, 1, 2, 2, 3, 0], [1] * 6, [1, 1, 2, 0, 0, 0], [1] * 6, [1, 2, 3, 4, 5, 6]]
    )
    target = np.array(features["decoder_block_ids"])
    target[2, 5:] = 0
    weights = np.where(target > 0, features["decoder_loss_weights"], 0).astype(np.float32)
    return {
        **features,
        "encoder_block_ids": source.astype(np.int32),
        "encoder_segment_ids": (source > 0).astype(np.int32) + (source > 2),
        "decoder_block_ids": target,
        "decoder_segment_ids": (target > 0).astype(np.int32) + (target > 2),
        "decoder_loss_weights": weights,
    }


def loss_of(config: ModelConfig = WIDE, **settings: Any) -> Loss:
    distillation = Distillation("", **{"relation_weight": 0.0, **settings})
    check_teacher(distillation, config, CONFIG)
    return with_teacher(OBJECTIVES, distillation, M6Rec(config))


@functools.partial(jax.jit, static_argnums=0)
def added(loss: Loss, variables: Any, features: Features) -> Any:
    """What is added to the objectives of the student."""
    terms, metrics = loss(M6Rec(CONFIG), variables, features)
    lessons = {name: term for name, term in terms.items() if name.startswith("distillation/")}
    return mean_loss(lessons), metrics


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Of scores."""
    return float(np.exp(log_softmax(p)) @ (log_softmax(p) - log_softmax(q)))


def first_projections(variables: Any, tower: str, tokens: np.ndarray) -> list[np.ndarray]:
    """Queries, keys, values of a tower's first layer for one row, `[length, heads * kv]`."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    layer = params[tower]["layers"]
    x = params["token_embedder"]["embedding"][tokens]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    x = x * layer["self_attention_norm"]["scale"][0]
    attention = layer["self_attention"]
    kernels = [attention[name]["kernel"][0] for name in ("query", "key", "value")]
    found = [x @ kernel.reshape(len(kernel), -1) for kernel in kernels]
    found[0] = found[0] * kernels[0].shape[-1] ** 0.5
    return found


def test_relations(batch: Features) -> None:
    """Of one layer each; the teacher is wider, and has more heads."""
    teacher = WIDE.replace(num_encoder_layers=1, num_decoder_layers=1)
    variables = made(CONFIG, batch, 1) | {TEACHER: made(teacher, batch, 2)}
    loss = loss_of(teacher, relation_weight=2.0)
    actual, metrics = added(loss, variables, batch)
    expected = 0.0
    for tower in ("encoder", "decoder"):
        total, count = 0.0, 0
        for row, tokens in enumerate(batch[f"{tower}_input_tokens"]):
            blocks, segments = (batch[f"{tower}_{n}_ids"][row] for n in ("block", "segment"))
            sides = [
                first_projections(given, tower, tokens) for given in (variables[TEACHER], variables)
            ]
            for query in np.flatnonzero(blocks):
                count += 1
                seen = (blocks != 0) & (segments == segments[query])
                if tower == "decoder":
                    seen &= (blocks == blocks[query]) & (np.arange(len(blocks)) <= query)
                for of_teacher, of_student in zip(*sides, strict=True):
                    for head in range(2):
                        scores = []
                        for x in (of_teacher, of_student):
                            width = x.shape[1] // 2
                            own = x[:, head * width : (head + 1) * width]
                            scores.append(own[seen] @ own[query] / width**0.5)
                        total += kl(*scores) / 2
        expected += 2.0 * total / count
        assert float(metrics[f"distillation/{tower}_relations"].mean()) == pytest.approx(
            total / count, rel=1e-4
        )
    assert float(actual) == pytest.approx(expected, rel=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def outputs(config: ModelConfig, variables: Any, features: Features) -> dict[str, Any]:
    """What each of the model's heads says."""
    model, task_ids = M6Rec(config), features["task_ids"]
    states = model.apply(variables, features)

    def of(method: Any, *args: Any) -> Any:
        return model.apply(variables, *args, method=method)

    return {
        "tokens": of(model.token_logits, states.hidden),
        "classes": of(model.option_logits, states.hidden, task_ids),
        "users": of(model.user_embedding, states.encoded, task_ids),
        "items": of(model.item_embedding, states.hidden, task_ids),
    }


@pytest.mark.parametrize("chunk_length", [0, 4])
def test_tokens_and_classes(batch: Features, chunk_length: int) -> None:
    teacher, student = made(WIDE, batch, 2), made(CONFIG, batch, 1)
    loss = loss_of(vocabulary_weight=1.5, class_weight=0.5, chunk_length=chunk_length)
    actual, _ = added(loss, student | {TEACHER: teacher}, batch)
    sides = [outputs(WIDE, teacher, batch), outputs(CONFIG, student, batch)]
    logits, classes = ([np.asarray(side[of]) for side in sides] for of in ("tokens", "classes"))
    weights, labels = batch["decoder_loss_weights"], batch["decoder_labels"]
    total = sum(
        weights[at] * kl(*(x[at][:24].astype(np.float64) for x in logits))
        for at in np.ndindex(*weights.shape)
    )
    expected = 1.5 * total / weights.sum()
    total = sum(
        kl(*(x[at].astype(np.float64) for x in classes))
        for at in zip(*np.nonzero(labels >= 0), strict=True)
    )
    expected += 0.5 * total / (labels >= 0).sum()
    assert float(actual) == pytest.approx(expected, rel=1e-3)


def test_similarities(batch: Features) -> None:
    teacher, student = made(WIDE, batch, 2), made(CONFIG, batch, 1)
    jobs = np.tile(np.array([[2], [2], [2], [3], [3]], np.int32), (1, 9))
    batch = {**batch, "decoder_job_ids": jobs}
    loss = loss_of(similarity_weight=1.0)
    actual, _ = added(loss, student | {TEACHER: teacher}, batch)
    places = [
        (row, at) for row, at in zip(*np.nonzero(batch["decoder_item_ids"] >= 0), strict=True)
    ]
    places = [(row, at) for row, at in places if batch["retrieval"][row, 0]]
    scores = [
        (np.asarray(side["users"], np.float64), np.asarray(side["items"], np.float64))
        for side in (outputs(WIDE, teacher, batch), outputs(CONFIG, student, batch))
    ]
    total = 0.0
    for row, _ in places:  # a row counts once for each of its items
        others = [(r, at) for r, at in places if jobs[r, 0] == jobs[row, 0]]
        total += kl(
            *(np.array([users[row] @ items[at] for at in others]) / 0.07 for users, items in scores)
        )
    assert float(actual) == pytest.approx(total / len(places), rel=1e-3)


def test_a_model_has_nothing_to_learn_from_itself(batch: Features) -> None:
    student = made(CONFIG, batch, 1)
    loss = loss_of(CONFIG, **EVERYTHING)

    def of(own: Any) -> Any:
        return added(loss, own | {TEACHER: student}, batch)[0]

    value, gradient = jax.jit(jax.value_and_grad(of))(student)
    assert float(value) == pytest.approx(0.0, abs=1e-5)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=2e-5)


def test_gradients_reach_the_student_alone(batch: Features) -> None:
    variables = made(CONFIG, batch, 1) | {TEACHER: made(WIDE, batch, 2)}
    for term, weight in EVERYTHING.items():
        loss = loss_of(**{term: weight})
        gradient = jax.jit(jax.grad(lambda v, loss=loss: added(loss, v, batch)[0]))(variables)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient.pop(TEACHER))), term
        assert float(jnp.linalg.norm(gradient["params"]["token_embedder"]["embedding"])) > 1e-4


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"relation_weight": 1.0}, WIDE.replace(num_heads=1, head_dim=5)),
        ({"class_weight": 1.0}, WIDE.replace(prompts=PromptConfig())),
        ({"similarity_weight": 1.0}, WIDE.replace(prompts=PromptConfig())),
        ({}, WIDE),
        (
            {"class_weight": 1.0},
            WIDE.replace(prompts=dataclasses.replace(WIDE.prompts, num_tasks=2)),
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="Distillation"):
        loss_of(config, **settings)
