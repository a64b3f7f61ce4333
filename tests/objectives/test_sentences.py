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
    SENTENCE_ENCODER,
    SENTENCE_TOKENS,
    SentenceDistillation,
    SentenceLoss,
)
from m6rec_jax.objectives.total import total_loss
from tests.objectives.conftest import CONFIG, ROWS, Features

BERT = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
OBJECTIVES = functools.partial(total_loss, language_modelling_weight=0.5)
TEMPERATURE = 0.3


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
        [1, 2, 3, 3, 4, 4],
        [1, 2, 3, 4, 5, 6],
    ]
    documents = [[1, 1, 1, 1, 1, 0], [1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 2, 2, 2, 2], [1] * 6]
    rng = np.random.default_rng(4)
    tokens = rng.integers(1, 20, (ROWS, 4, 5)) * (rng.random((ROWS, 4, 1)) < 0.9)
    tokens = np.where(np.arange(5) < rng.integers(2, 6, (ROWS, 4, 1)), tokens, 0)
    present = np.arange(1, 5)[None] <= np.max(blocks, axis=1, keepdims=True)
    return {
        **features,
        "encoder_block_ids": np.array(blocks, np.int32),
        "encoder_segment_ids": np.array(documents, np.int32),
        SENTENCE_TOKENS: (tokens * present[..., None]).astype(np.int32),
    }


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


def test_the_forward_pass(weights: Any, batch: Features) -> None:
    tokens = batch[SENTENCE_TOKENS].reshape(-1, 5)
    found = jax.jit(sentence_vectors, static_argnums=0)(BERT, weights, tokens, tokens != 0)
    assert (tokens[:, 0] != 0).sum() >= 10
    for row, vector in zip(tokens, np.asarray(found), strict=True):
        if row[0]:
            np.testing.assert_allclose(vector, reference(weights, row[row != 0]), atol=1e-5)


def test_relations_of_blocks(weights: Any, batch: Features, variables: Any) -> None:
    model = M6Rec(CONFIG)
    settings = SentenceDistillation("", weight=2.0, temperature=TEMPERATURE)
    loss = SentenceLoss(settings, OBJECTIVES, BERT)

    def added(given: Any) -> Any:
        own = {name: tree for name, tree in given.items() if name != SENTENCE_ENCODER}
        return loss(model, given, batch)[0] - OBJECTIVES(model, own, batch)[0]

    value, gradient = jax.jit(jax.value_and_grad(added))({**variables, SENTENCE_ENCODER: weights})
    encoded = jax.jit(model.apply)(variables, batch).encoded
    hidden = np.asarray(encoded.hidden, np.float64)[:, 4:]
    total, count = 0.0, 0
    for row in range(ROWS):
        blocks, documents = batch["encoder_block_ids"][row], batch["encoder_segment_ids"][row]
        known = [i for i in range(4) if batch[SENTENCE_TOKENS][row, i].any()]
        taught = {}
        for i in known:
            tokens, mean = batch[SENTENCE_TOKENS][row, i], hidden[row, blocks == i + 1].mean(0)
            document = documents[blocks == i + 1][0]
            vectors = reference(weights, tokens[tokens != 0]), mean / np.linalg.norm(mean)
            taught[i] = (document, *vectors)
        for i in known:
            others = [j for j in known if j != i and taught[j][0] == taught[i][0]]
            if not others:
                continue
            count += 1
            shares = []
            for side in (1, 2):
                scores = np.exp([taught[i][side] @ taught[j][side] / TEMPERATURE for j in others])
                shares.append(scores / scores.sum())
            total += float(shares[0] @ np.log(shares[0] / shares[1]))
    assert count > 6
    assert float(loss.denominators(batch)["sentences"]) == count
    assert float(value) == pytest.approx(2.0 * total / count, rel=2e-3)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[SENTENCE_ENCODER]))
    assert np.abs(gradient["params"]["token_embedder"]["embedding"]).max() > 1e-4
