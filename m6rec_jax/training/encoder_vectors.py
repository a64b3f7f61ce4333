"""Vectors for a vocabulary's pieces to start from, by a public sentence encoder.

Each piece, phrases and titles among them, is encoded as a sentence of its own. Half a word by
itself says little. Therefore the vectors of frequent pieces are moved until the mean over a
sentence is what the encoder makes of all of it, as nearly as a penalty on the way allows (ridge
regression), for sentences of the training data. All are put into as few dimensions as the model has
(principal components). That static vectors keep most of what an encoder knows of texts, and more
when they are fitted to it, was shown by Model2Vec (Tulkens and van Dongen, 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from m6rec_jax.objectives.sentences import sentence_numbers
from m6rec_jax.text.token_vectors import Rows
from m6rec_jax.training.sentences import SentenceEncoder

_MAX_TOKENS = 64
# Pieces of a sentence that is fitted to.
_LEAST = 4
# Of squared distances from the vectors of pieces alone, and how many pieces may move, the most
# frequent ones: memory is eight bytes of each pair.
_PENALTY, _MOVED = 0.03, 10_000


def encoder_vectors(
    folder: Path,
    pieces: Sequence[str],
    batches: Iterable[Rows],
    width: int,
    sentences: int,
    seed: int,
) -> np.ndarray:
    """Vectors of pieces, of a mean square of one over all: float32 `[pieces, width]`.

    Args:
      folder: of the encoder; see `training.sentences`.
      pieces: as the vocabulary writes them ("▁" for a space).
      batches: rows of the training data.
      width: of the vectors; columns beyond the encoder's own are zero.
      sentences: how many blocks of the rows the encoder reads at most.
      seed: of which they are.

    Raises:
      CheckpointError: another kind of model, or damage.
    """
    encoder = SentenceEncoder(folder, _MAX_TOKENS)
    vectors = _centred(encoder(_texts(pieces, np.arange(len(pieces))[:, None])))
    says = vectors.any(axis=1)
    found = _sentences(batches, len(pieces))
    drawn = np.random.default_rng(seed).permutation(len(found))[:sentences]
    read = [found[number] for number in drawn]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *read]), minlength=len(pieces))
    if read:
        vectors = _fitted(vectors, counts, read, _centred(encoder(_texts(pieces, read))))
    weights = 1.0 + counts
    around = vectors - np.average(vectors, axis=0, weights=weights)
    _, axes = np.linalg.eigh((around * weights[:, None]).T @ around)
    projected = vectors @ axes[:, ::-1][:, :width]
    wide = np.pad(projected, ((0, 0), (0, width - projected.shape[1])))
    return (wide / np.sqrt(np.mean(wide[says] ** 2))).astype(np.float32)


def _texts(pieces: Sequence[str], sentences: Iterable[np.ndarray]) -> list[str]:
    joined = ("".join(pieces[number] for number in sentence) for sentence in sentences)
    return [text.replace("▁", " ").strip() for text in joined]


def _centred(vectors: np.ndarray) -> np.ndarray:
    """Less their mean, float64; those of empty texts stay zero."""
    says = vectors.any(axis=1, keepdims=True)
    return np.where(says, vectors - vectors.mean(axis=0, where=says, dtype=np.float64), 0.0)


def _sentences(batches: Iterable[Rows], num_pieces: int) -> list[np.ndarray]:
    """Distinct blocks of pieces alone, without masks and marks, in the order they come."""
    found: dict[bytes, np.ndarray] = {}
    for tokens, blocks, documents in batches:
        features = {"encoder_block_ids": blocks}
        if documents is not None:
            features["encoder_segment_ids"] = documents
        for row, numbers in zip(tokens, sentence_numbers(features), strict=True):
            for block in np.split(row, np.flatnonzero(np.diff(numbers)) + 1):
                if len(block) >= _LEAST and block.min() > 0 and block.max() < num_pieces:
                    found.setdefault(block.tobytes(), block)
    return list(found.values())


def _fitted(
    vectors: np.ndarray, counts: np.ndarray, sentences: Sequence[np.ndarray], wanted: np.ndarray
) -> np.ndarray:
    """Vectors whose means over sentences are nearer to what is wanted `[sentences, width]`."""
    from sklearn.linear_model import Ridge

    lengths = [len(sentence) for sentence in sentences]
    places = (np.repeat(np.arange(len(lengths)), lengths), np.concatenate(sentences))
    shares = sparse.csr_matrix(
        (np.repeat(1.0 / np.array(lengths), lengths), places), (len(lengths), len(vectors))
    )
    moved = np.argsort(-counts, kind="stable")[:_MOVED]
    ridge = Ridge(alpha=_PENALTY, fit_intercept=False, solver="cholesky")
    ridge.fit(shares[:, moved], wanted - shares @ vectors)
    vectors = vectors.copy()
    vectors[moved] += ridge.coef_.T
    return vectors
