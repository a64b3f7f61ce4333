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

import numpy as np

from m6rec_jax.text.piece_vectors import Rows
from m6rec_jax.training.sentences import SentenceEncoder

_MAX_TOKENS = 64
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
    texts = [piece.replace("▁", " ").strip() for piece in pieces]
    encoded = SentenceEncoder(folder, _MAX_TOKENS)(texts).astype(np.float64)
    says = encoded.any(axis=1)
    encoded[says] -= encoded[says].mean(axis=0)
    _, axes = np.linalg.eigh(encoded.T @ encoded)
    found = np.zeros((len(pieces), width))
    projected = encoded @ axes[:, ::-1][:, :width]
    weights = _HALF_WEIGHT / (_HALF_WEIGHT + counts / max(1.0, counts.sum()))
    found[:, : projected.shape[1]] = projected * weights[:, None]
    return (found / np.sqrt(np.mean(found[says] ** 2))).astype(np.float32)
