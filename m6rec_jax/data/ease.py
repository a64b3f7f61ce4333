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
from typing import Self

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
      items: that have weights, int64 `[n]`, ascending, indices in the items table.
      others: whom they weigh on, places in `items`, int32 `[n, neighbours]`.
      weights: float32 `[n, neighbours]`.
    """

    def __init__(self, items: np.ndarray, others: np.ndarray, weights: np.ndarray) -> None:
        self.items, self._others, self._weights = items, others, weights

    @classmethod
    def fitted(cls, users: np.ndarray, items: np.ndarray, num_items: int) -> Ease:
        """Fits weights to events in any order: their users and items `[events]`."""
        counts = np.bincount(items, minlength=num_items)
        kept = np.sort(np.argsort(-counts, kind="stable")[:ITEMS])
        kept = kept[counts[kept] > 0]
        size, most = len(kept), min(NEIGHBOURS, max(len(kept) - 1, 0))
        others, weights = np.zeros((size, most), np.int32), np.zeros((size, most), np.float32)
        inverse = _inverse(_pairs(users, items, kept), PENALTY)
        diagonal = inverse.diagonal().copy()
        for start in range(0, size, _BLOCK):
            rows = slice(start, min(start + _BLOCK, size))
            found = -_symmetric_rows(inverse, rows) / diagonal
            found[np.arange(len(found)), np.arange(size)[rows]] = 0.0
            # The item's own, 0, stays out.
            others[rows] = (
                np.argpartition(-np.abs(found), most - 1, axis=1)[:, :most] if most else 0
            )
            weights[rows] = np.take_along_axis(found, others[rows].astype(np.int64), axis=1)
        return cls(kept, others, weights)

    def related(
        self, past: Sequence[int] | np.ndarray, out: Sequence[int] | np.ndarray
    ) -> RelatedItems:
        """Items that what a user had speaks for; equal scores in the order of the items table.

        Args:
          past: the user's items, as indices, in any order.
          out: items to leave out.
        """
        had = np.isin(self.items, np.asarray(past, np.int64))
        others, weights = self._others[had].ravel(), self._weights[had].ravel()
        scores = np.bincount(others, weights, len(self.items))
        scores[np.isin(self.items, np.asarray(out, np.int64))] = 0.0
        left = scores > 0
        items, scores = self.items[left], scores[left]
        order = np.lexsort((items, -scores))
        return RelatedItems(items[order], scores[order])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the weights to `ease.parquet` in a folder, whole or not at all."""
        most = self._others.shape[1]
        others = self.items[self._others.ravel()]
        columns = {"item": np.repeat(self.items, most), "other": others}
        table = pa.table({**columns, "weight": self._weights.ravel()})
        with atomic_file(Path(folder) / FILE) as scratch:
            pq.write_table(table, scratch, compression="zstd")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote; raises DataError where it is missing or damaged."""
        with counted_file(Path(folder) / FILE) as path:
            table = pq.read_table(path)
            item, other, weight = (table[n].to_numpy() for n in ("item", "other", "weight"))
            items = np.unique(item)
            places = np.searchsorted(items, other).astype(np.int32)
            shape = (len(items), len(item) // max(len(items), 1))
            return cls(items, places.reshape(shape), weight.reshape(shape))


def _pairs(users: np.ndarray, items: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """How many users had both of two kept items: float32 `[n, n]`."""
    known = np.isin(items, kept)
    _, rows = np.unique(users[known], return_inverse=True)
    places = (rows, np.searchsorted(kept, items[known]))
    size = (int(rows.max(initial=-1)) + 1, len(kept))
    acted = sparse.csc_matrix((np.ones(len(rows), np.float32), places), size)
    acted.data[:] = 1.0  # once, however often
    found = np.empty((len(kept), len(kept)), np.float32, order="F")
    for start in range(0, len(kept), _BLOCK):
        some = slice(start, start + _BLOCK)
        found[:, some] = (acted.T @ acted[:, some]).toarray()
    return found


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
