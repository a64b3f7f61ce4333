"""A sentence encoder's folder, and vectors of pieces by it, against the encoder itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from m6rec_jax.checkpoints.bert import read_bert
from m6rec_jax.model.bert import BertConfig, sentence_vectors, weight_shapes
from m6rec_jax.training import sentence_encoder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "liked",
    "film",
    "##s",
    "a",
    "b",
    ",",
    "2",
    "days",
    "ago",
]
CONFIG = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)


def write_encoder(tmp_path: Path, weights: Callable[[tuple[int, ...]], np.ndarray]) -> Path:
    """The folder of a tiny encoder, whose weights are of the shapes asked for."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 16, "type_vocab_size": 2}
    values = {"model_type": "bert", "intermediate_size": 12, **sizes, **vars(CONFIG)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    shapes = weight_shapes(CONFIG, len(WORDS), 16, 2, 12)
    made = {f"bert.{name}": weights(shape).astype(np.float16) for name, shape in shapes.items()}
    save_file(made, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    return write_encoder(tmp_path, lambda shape: random.normal(size=shape))


def test_texts_are_encoded_by_the_folder(folder: Path) -> None:
    config, weights = read_bert(folder)
    encoder = sentence_encoder.sentence_encoder(folder)
    tokens = {
        "Liked Films A, 2 days ago": [2, 4, 5, 6, 7, 9, 10, 11, 12, 3],
        "zebra": [2, 1, 3],
        "": [],
    }
    texts = ["zebra", *tokens] * 12  # more than fit into the smaller shape
    found = encoder(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = np.array([tokens[text]])
        expected = sentence_vectors(config, weights, ids, ids > 0) if text else np.zeros((1, 8))
        np.testing.assert_allclose(vector, expected[0], atol=1e-5)
    np.testing.assert_allclose(encoder(["zebra"])[0], found[0], atol=1e-6)


PIECES = [
    "<pad>",
    "\u2581",
    "\u2581liked",
    "\u2581Films",
    "\u2581a",
    "b",
    "\u25812 days ago",
    "zebra",
]
# Of the pieces that say something, their tokens: [CLS] and [SEP] around them.
TOKENS = [[2, 1, 1, 1, 3], [], [2, 4, 3], [2, 5, 6, 3], [2, 7, 3], [2, 8, 3], [2, 10, 11, 12, 3]]
TOKENS.append([2, 1, 3])


# Two documents in the first row; what is short, masked or padding is no sentence.
ROWS = (
    np.array([[2, 3, 6, 7, 4, 5, 6, 2, 7, 9, 3], [2, 3, 6, 7, 3, 2, 2, 3, 4, 4, 0]], np.int32),
    np.array([[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 0]], np.int32),
    np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]], np.int32),
)
SENTENCES = ([2, 3, 6, 7], [4, 5, 6, 2], [2, 3, 4, 4])
OF_SENTENCES = (
    [2, 4, 5, 6, 10, 11, 1, 3],  # the last two are one word
    [2, 1, 10, 11, 12, 4, 3],
    [2, 4, 5, 6, 7, 7, 3],
)


def of_encoder(folder: Path, tokens: Any) -> np.ndarray:
    """What it makes of texts, one by one; zeros for an empty one."""
    config, weights = read_bert(folder)
    found = np.zeros((len(tokens), CONFIG.hidden_size))
    for row, own in enumerate(tokens):
        if own:
            ids = jnp.array([own])
            found[row] = sentence_vectors(config, weights, ids, ids > 0)[0]
    says = found.any(axis=1)
    found[says] -= found[says].mean(axis=0)
    return found


@pytest.mark.parametrize("width", [3, 8, 10])
@pytest.mark.parametrize("sentences", [0, 9])
def test_vectors_against_numpy(folder: Path, width: int, sentences: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(sentence_encoder, "_BATCHES", (3, 3))
    expected, counts = of_encoder(folder, TOKENS), np.ones(len(PIECES))
    says = np.array([bool(tokens) for tokens in TOKENS])
    if sentences:
        shares = np.zeros((3, len(PIECES)))
        for row, sentence in enumerate(SENTENCES):
            np.add.at(shares[row], sentence, 1 / len(sentence))
            np.add.at(counts, sentence, 1)
        rest = of_encoder(folder, OF_SENTENCES) - shares @ expected
        expected += np.linalg.solve(shares.T @ shares + 0.03 * np.eye(len(PIECES)), shares.T @ rest)
        assert np.linalg.norm(rest) > 2 * np.linalg.norm(
            of_encoder(folder, OF_SENTENCES) - shares @ expected
        )
    # The axes along which pieces differ most.
    around = expected - np.average(expected, axis=0, weights=counts)
    _, _, axes = np.linalg.svd(around * np.sqrt(counts)[:, None])
    low = expected @ axes[:width].T
    found = sentence_encoder.encoder_vectors(folder, PIECES, [ROWS], width, sentences, 0)
    assert found.shape == (len(PIECES), width)
    assert not found[1].any()
    assert np.mean(found[says] ** 2) == pytest.approx(1.0, rel=1e-5)
    low /= np.sqrt(np.sum(low[says] ** 2) / (says.sum() * width))
    np.testing.assert_allclose(found @ found.T, low @ low.T, atol=1e-4)
