"""Vectors of pieces by a sentence encoder, against the encoder itself."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.checkpoints.bert import read_bert
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.bert import sentence_vectors
from m6rec_jax.training import encoder_vectors, sentences
from m6rec_jax.training.encoder_vectors import count_pieces
from m6rec_jax.training.sentences import encoder_folder
from tests.training.test_sentences import CONFIG, write_encoder

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    return write_encoder(tmp_path, lambda shape: random.normal(size=shape))


@pytest.mark.parametrize("width", [3, 8, 10])
def test_likeness_is_that_of_the_encoder(folder: Path, width: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(sentences, "_BATCHES", (3, 3))
    monkeypatch.setattr(encoder_vectors, "_MAX_TOKENS", 16)
    config, weights = read_bert(folder)
    expected = np.zeros((len(PIECES), CONFIG.hidden_size))
    for row, tokens in enumerate(TOKENS):
        if tokens:
            ids = jnp.array([tokens])
            expected[row] = sentence_vectors(config, weights, ids, ids > 0)[0]
    says = np.array([bool(tokens) for tokens in TOKENS])
    expected[says] -= expected[says].mean(axis=0)
    # The nearest matrix of so low a rank.
    left, scale, right = np.linalg.svd(expected)
    number = min(width, len(scale))
    low = (left[:, :number] * scale[:number]) @ right[:number]
    counts = np.array([0, 9, 3, 0, 1, 0, 0, 0.0])
    low *= (1e-3 / (1e-3 + counts / counts.sum()))[:, None]
    found = encoder_vectors.encoder_vectors(folder, PIECES, counts, width)
    assert found.shape == (len(PIECES), width)
    assert not found[1].any()
    assert np.mean(found[says] ** 2) == pytest.approx(1.0, rel=1e-5)
    low /= np.sqrt(np.sum(low**2) / (says.sum() * width))
    np.testing.assert_allclose(found @ found.T, low @ low.T, atol=1e-4)


def test_pieces_of_rows_are_counted() -> None:
    tokens = np.array([[3, 3, 7, 9], [1, 0, 0, 0]], np.int32)
    assert count_pieces([(tokens, tokens, None), (tokens[:1], tokens, None)], 8).tolist() == [
        *(0, 1, 0, 4),
        *(0, 0, 0, 2),
    ]


def test_no_encoder_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path))
    with pytest.raises(CheckpointError, match="`m6rec data fetch sentence-encoder`"):
        encoder_folder("sentence-encoder")
