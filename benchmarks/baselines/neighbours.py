"""What the nearest training text says: TF-IDF neighbours, for texts and for dialogues.

No training, no language model: an answer is one that was given before, to the source most alike.
Figures are those of `m6rec_jax.evaluation`, the very functions that measure our models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

Rows = Sequence[Mapping[str, Any]]

NUM_NEIGHBOURS = 50
# Of queries compared with all training texts at a time.
_QUERIES = 512
# Popularity orders what no neighbour recommends; it is never worth more than a neighbour.
_TIE_BREAK = 1e-6


def asked(row: Mapping[str, Any]) -> str:
    """All that is given of a text to write."""
    return "\n".join([*row["source"], row["prefix"]])


def similarities(train: Sequence[str], test: Sequence[str]) -> csr_matrix:
    """Cosine of the TF-IDF vectors (words and pairs of words), weights of the training texts.

    Returns:
      sparse float64 [test, train].
    """
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    known = vectors.fit_transform(train)
    return csr_matrix(vectors.transform(test) @ known.T)


def nearest_texts(train: Rows, test: Rows) -> list[str]:
    """For every row, the training text whose source is most alike; of equals the first."""
    texts: list[str] = []
    known = [asked(row) for row in train]
    for start in range(0, len(test), _QUERIES):
        found = similarities(known, [asked(row) for row in test[start : start + _QUERIES]])
        texts += [train[place]["target"] for place in found.argmax(axis=1).A1.tolist()]
    return texts


def neighbour_scores(train: Rows, test: Rows, num_items: int) -> np.ndarray:
    """How much the neighbours of each row recommend each item.

    Args:
      train, test: rows of the view 'recommendations'.
      num_items: of the catalogue.

    Returns:
      float64 [test, items]: the summed similarity of those of the `NUM_NEIGHBOURS` nearest training
      rows that recommend the item; popularity decides between equals.
    """
    items = np.array([row["item_indices"][0] for row in train])
    counts = np.bincount(items, minlength=num_items)
    found = similarities([asked(row) for row in train], [asked(row) for row in test])
    scores = np.tile(_TIE_BREAK * counts / max(counts.sum(), 1), (len(test), 1))
    for i in range(len(test)):
        row = found.getrow(i)
        near = np.argsort(-row.data, kind="stable")[:NUM_NEIGHBOURS]
        np.add.at(scores[i], items[row.indices[near]], row.data[near])
    return scores
