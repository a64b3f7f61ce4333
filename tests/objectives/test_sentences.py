"""A sentence encoder's relations between blocks, against loops over numpy's float64."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.model.bert import BertConfig, sentence_vectors, weight_shapes
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives.sentences import (
    SENTENCE_VECTORS,
    with_sentences,
)
from m6rec_jax.objectives.total import total_loss
from tests.objectives.conftest import CONFIG, ROWS, Features

BERT = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
OBJECTIVES = functools.partial(total_loss, language_modelling_weight=0.5)
TEMPERATURE = 0.07


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        name: (rng.normal(size=shape) * 0.4 + ("Norm.weight" in name)).astype(np.float32)
        for name, shape in weight_shapes(BERT, 20, 9, 2, 11).items()
    }


@pytest.fixture(scope="module")
def batch(features: Features) -> Features:
    """Blocks and documents of the source, and the encoder's tokens of up to four blocks."""
    blocks = [
        [1, 1, 2, 2, 3, 0],
        [1] * 6,
        [1, 1, 2, 0, 0, 0],
        [1, 2, 3, 3, 1, 1],
        [1, 2, 3, 4, 5, 6],
    ]
    documents = np.array([[1, 1, 1, 1, 1, 0], *[[1] * 6] * 2, [1, 1, 1, 1, 2, 2], [1] * 6])
    return {
        **features,
        "encoder_block_ids": np.array(blocks, np.int32),
        "encoder_segment_ids": documents.astype(np.int32),
        SENTENCE_VECTORS: vectors(np.array([3, 1, 2, 4, 6])),
    }


def vectors(counts: np.ndarray) -> np.ndarray:
    """The teacher's, of up to four blocks a row; some have none, and two are of one text."""
    rng = np.random.default_rng(4)
    found = rng.normal(size=(ROWS, 4, 6)) * (rng.random((ROWS, 4, 1)) < 0.9)
    found *= (np.arange(1, 5) <= counts[:, None])[..., None]
    found[3, 2] = found[0, 0]
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    rng = np.random.default_rng(4)
    drawn = rng.integers(1, 20, (12, 5))
    return np.where(np.arange(5) < rng.integers(2, 6, (12, 1)), drawn, 0)


def reference(weights: Any, tokens: np.ndarray) -> np.ndarray:
    """One sentence without padding, head by head."""
    w = {name: leaf.astype(np.float64) for name, leaf in weights.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return np.stack([w[f"{name}.weight"] @ row + w[f"{name}.bias"] for row in x])

    x = w["embeddings.word_embeddings.weight"][tokens]
    x = x + w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(2):
        name = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for own in (slice(0, 4), slice(4, 8)):
            scores = np.exp(q[:, own] @ k[:, own].T / 2.0)
            mixed[:, own] = scores / scores.sum(-1, keepdims=True) @ v[:, own]
        x = norm(
            x + linear(mixed, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        hidden = linear(x, f"{name}.intermediate.dense")
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = norm(x + linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x.sum(0) / np.linalg.norm(x.sum(0))


def test_the_forward_pass(weights: Any, tokens: np.ndarray) -> None:
    found = jax.jit(sentence_vectors, static_argnums=0)(BERT, weights, tokens, tokens != 0)
    for row, vector in zip(tokens, np.asarray(found), strict=True):
        np.testing.assert_allclose(vector, reference(weights, row[row != 0]), atol=1e-5)


def beside_a_teacher(model: M6Rec, variables: Any, features: Features, **options: Any) -> Any:
    """`OBJECTIVES`, after which another model reads the batch, as distillation lets it."""
    found = OBJECTIVES(model, variables, features, **options)
    model.apply(jax.tree.map(lambda leaf: -leaf, variables), features)
    return found


@pytest.mark.parametrize("objectives", [OBJECTIVES, beside_a_teacher])
def test_relations_of_blocks(batch: Features, variables: Any, objectives: Any) -> None:
    model = M6Rec(CONFIG)
    loss = with_sentences(objectives)

    def added(given: Any) -> Any:
        return loss(model, given, batch)[0]["distillation/sentences"].mean()

    value, gradient = jax.jit(jax.value_and_grad(added))(variables)
    encoded = jax.jit(model.apply)(variables, batch).encoded
    hidden = np.asarray(encoded.hidden, np.float64)[:, 4:]
    taught = []
    for row, place in np.argwhere(batch[SENTENCE_VECTORS].any(axis=-1)):
        block, document = (1, 2) if (row, place) == (3, 3) else (place + 1, 1)
        held = batch["encoder_block_ids"][row] == block
        held &= batch["encoder_segment_ids"][row] == document
        mean = hidden[row, held].mean(0)
        own = batch[SENTENCE_VECTORS][row, place].astype(np.float64)
        taught.append([side / np.linalg.norm(side) for side in (own, mean)])
    total = 0.0
    for i, (own, _) in enumerate(taught):
        others = [j for j, (other, _) in enumerate(taught) if j != i and own @ other < 0.999]
        assert len(taught) - len(others) in (1, 2)
        shares = []
        for side in (0, 1):
            alike = [taught[i][side] @ taught[j][side] for j in others]
            scores = np.exp(np.array(alike) / TEMPERATURE)
            shares.append(scores / scores.sum())
        total += float(shares[0] @ np.log(shares[0] / shares[1]))
    assert len(taught) > 10
    assert float(value) == pytest.approx(total / len(taught), rel=2e-3)
    assert np.abs(gradient["params"]["token_embedder"]["embedding"]).max() > 1e-4
