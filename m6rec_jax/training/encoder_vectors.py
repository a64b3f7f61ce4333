"""Vectors for a vocabulary's pieces to start from, by a public sentence encoder.

Each piece, phrases and titles among them, is encoded as a sentence of its own, and all are put into
as few dimensions as the model has (principal components). Pieces weigh less the more frequent they
are, as in smooth inverse frequency (Arora et al., 2017): what is said by "the" is little. That
static vectors keep most of what an encoder knows of texts was shown by Model2Vec (Tulkens and van
Dongen, 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from m6rec_jax.checkpoints.bert import read_bert
from m6rec_jax.model.bert import sentence_vectors
from m6rec_jax.text.piece_vectors import Rows
from m6rec_jax.training.sentences import sentence_tokenizer

_MAX_TOKENS = 64
_BATCH = 256
# Pieces of this frequency weigh half as much as rare ones.
_HALF_WEIGHT = 1e-3


def count_pieces(batches: Iterable[Rows], num_pieces: int) -> np.ndarray:
    """How often each piece stands in rows of `piece_vectors.Rows`: float64 `[pieces]`."""
    counts = np.zeros(num_pieces)
    for tokens, _, _ in batches:
        real = tokens[(tokens > 0) & (tokens < num_pieces)]
        counts += np.bincount(real, minlength=num_pieces)
    return counts


def encoder_vectors(
    folder: Path, pieces: Sequence[str], counts: np.ndarray, width: int
) -> np.ndarray:
    """Vectors of pieces, of a mean square of one over all: float32 `[pieces, width]`.

    Args:
      folder: of the encoder; see `training.sentences`.
      pieces: as the vocabulary writes them ("▁" for a space).
      counts: of each in the training data `[pieces]`.
      width: of the vectors; columns beyond the encoder's own are zero.

    Raises:
      CheckpointError: another kind of model, or damage.
    """
    encoded = encoded_texts(folder, [piece.replace("▁", " ").strip() for piece in pieces])
    says = encoded.any(axis=1)
    encoded[says] -= encoded[says].mean(axis=0)
    _, axes = np.linalg.eigh(encoded.T @ encoded)
    found = np.zeros((len(pieces), width))
    projected = encoded @ axes[:, ::-1][:, :width]
    weights = _HALF_WEIGHT / (_HALF_WEIGHT + counts / max(1.0, counts.sum()))
    found[:, : projected.shape[1]] = projected * weights[:, None]
    return (found / np.sqrt(np.mean(found[says] ** 2))).astype(np.float32)


def encoded_texts(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """What an encoder makes of texts: float64 `[texts, hidden]`, zeros for one without a token."""
    config, weights = read_bert(folder)
    encode = sentence_tokenizer(folder, _MAX_TOKENS)
    tokens = [encode(text) for text in texts]
    found = np.zeros((len(texts), config.hidden_size))
    run = jax.jit(lambda weights, ids: sentence_vectors(config, weights, ids, ids > 0))
    # Alike lengths together; few shapes.
    order = np.argsort([len(ids) for ids in tokens], kind="stable")
    order = order[[len(tokens[number]) > 0 for number in order]]
    for start in range(0, len(order), _BATCH):
        numbers = order[start : start + _BATCH]
        length = -(-len(tokens[numbers[-1]]) // 8) * 8
        ids = np.zeros((_BATCH, length), np.int32)
        for row, number in enumerate(numbers):
            ids[row, : len(tokens[number])] = tokens[number]
        found[numbers] = np.asarray(run(weights, ids))[: len(numbers)]
    return found
