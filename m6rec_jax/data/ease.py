"""What follows from all that a user had: EASE, a linear model of items by items (Steck, 2019).

`co_occurrence` looks at a user's last items; this looks at all of them, in no order. The weights
predict each item from the others that the same user had, by least squares with a penalty and
without an item's own weight, in closed form: of the inverse P of the matrix of counts of pairs,
`B[i, j] = -P[i, j] / P[j, j]`. So an item that goes with everything says little. The most popular
items alone have weights, and of each the largest ones are kept, of either sign.

    ease = Ease.fitted(users, items, num_items)
    related = ease.related(past, seen)               # items and scores, highest first
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import linalg, sparse

from m6rec_jax.data.co_occurrence import RelatedItems, counted_file
from m6rec_jax.io.atomic import atomic_file

FILE = "ease.parquet"
# Raise it when weights change, so that they are fitted again.
FORMAT = 1
# How many items have weights, the most popular ones. A fit holds four bytes of each pair, 0.4 GB,
# and takes time as the cube.
ITEMS = 10_000
# Of squared weights.
PENALTY = 200.0
# Weights that are kept of each item.
NEIGHBOURS = 100
# Items whose rows are made together.
_BLOCK = 256


class Ease:
    """Weights of items on items.

    Args:
      weights: float32 `[items, items]`, of the first items of the items table: a user's items are
        rows, what they speak for is columns.
    """

    def __init__(self, weights: sparse.csr_array) -> None:
        self._weights = weights

    @classmethod
    def fitted(cls, users: np.ndarray, items: np.ndarray, num_items: int) -> Ease:
        """Fits weights to events in any order: their users and items `[events]`."""
        counts = np.bincount(items, minlength=num_items)
        kept = np.sort(np.argsort(-counts, kind="stable")[:ITEMS])
        kept = kept[counts[kept] > 0]
        most = min(NEIGHBOURS, max(len(kept) - 1, 0))
        others = np.zeros((len(kept), most), np.int64)
        weights = np.zeros((len(kept), most), np.float32)
        inverse = _inverse(_pairs(users, items, kept), PENALTY)
        diagonal = inverse.diagonal().copy()
        for start in range(0, len(kept) if most else 0, _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(kept)))
            of_rows = -_symmetric_rows(inverse, rows) / diagonal
            # The item's own, which is the smallest then, stays out.
            of_rows[np.arange(len(of_rows)), np.arange(rows.start, rows.stop)] = 0.0
            others[rows] = np.argpartition(-np.abs(of_rows), most - 1, axis=1)[:, :most]
            weights[rows] = np.take_along_axis(of_rows, others[rows], axis=1)
        return cls(_weights(np.repeat(kept, most), kept[others.ravel()], weights.ravel()))

    def related(
        self, past: Sequence[int] | np.ndarray, out: Sequence[int] | np.ndarray
    ) -> RelatedItems:
        """Items that what a user had speaks for; equal scores in the order of the items table.

        Args:
          past: the user's items, as indices, in any order.
          out: items to leave out.
        """
        size = self._weights.shape[0]
        had = np.unique(np.asarray(past, np.int64))
        rows = self._weights[had[had < size]]
        return RelatedItems.summed(rows.indices, rows.data, out, size)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the weights to `ease.parquet` in a folder, whole or not at all."""
        weights = self._weights.tocoo()
        columns = {"item": weights.row, "other": weights.col, "weight": weights.data}
        with atomic_file(Path(folder) / FILE) as scratch:
            pq.write_table(pa.table(columns), scratch, compression="zstd")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Ease:
        """Reads what `save` wrote; raises DataError where it is missing or damaged."""
        with counted_file(Path(folder) / FILE) as path:
            table = pq.read_table(path)
            return cls(_weights(*(table[name].to_numpy() for name in ("item", "other", "weight"))))


def _weights(items: np.ndarray, others: np.ndarray, weights: np.ndarray) -> sparse.csr_array:
    size = int(max(items.max(initial=-1), others.max(initial=-1))) + 1
    return sparse.csr_array((weights, (items, others)), (size, size))


def _pairs(users: np.ndarray, items: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """How many users had both of two kept items: float32 `[n, n]`."""
    there = np.isin(items, kept)
    _, rows = np.unique(users[there], return_inverse=True)
    places = (rows, np.searchsorted(kept, items[there]))
    size = (int(rows.max(initial=-1)) + 1, len(kept))
    acted = sparse.csc_array((np.ones(len(rows), np.float32), places), size)
    acted.data[:] = 1.0  # once, however often
    pairs = np.empty((len(kept), len(kept)), np.float32, order="F")
    for start in range(0, len(kept), _BLOCK):
        some = slice(start, start + _BLOCK)
        pairs[:, some] = (acted.T @ acted[:, some]).toarray()
    return pairs


def _inverse(pairs: np.ndarray, penalty: float) -> np.ndarray:
    """Of the matrix with a penalty on its diagonal, its lower triangle alone; in place."""
    pairs[np.diag_indices_from(pairs)] += penalty
    if not len(pairs):
        return pairs
    factor = linalg.cholesky(pairs, lower=True, overwrite_a=True, check_finite=False)
    return linalg.lapack.spotri(factor, lower=1, overwrite_c=1)[0]


def _symmetric_rows(lower: np.ndarray, rows: slice) -> np.ndarray:
    """Some rows of the symmetric matrix whose lower triangle this is."""
    square = np.tril(lower[rows, rows])
    square += np.tril(square, -1).T
    return np.hstack([lower[rows, : rows.start], square, lower[rows.stop :, rows].T])
