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

from pathlib import Path

import numpy as np
from scipy import linalg, sparse

from m6rec_jax.data.features.co_occurrence import Indices, RelatedItems, load_pairs, save_pairs

FILE = "ease.npz"
# Raise it when weights change, so that they are fitted again.
FORMAT = 2
# How many items have weights, the most popular ones. A fit holds eight bytes of each pair, 0.8 GB,
# and takes time as the cube.
ITEMS = 10_000
# Of squared weights.
PENALTY = 200.0
# Weights that are kept of each item.
NEIGHBOURS = 100
# Items whose rows are made together.
_BLOCK = 256


class Ease:
    """Weights float32 `[items, items]`, of the first items of the items table: a user's items are
    rows, what they speak for is columns.
    """

    def __init__(self, weights: sparse.csr_array) -> None:
        self._weights = weights

    @classmethod
    def fitted(cls, users: np.ndarray, items: np.ndarray, num_items: int) -> Ease:
        """Fits weights to events in any order: their users and items `[events]`."""
        counts = np.bincount(items, minlength=num_items)
        popular = np.sort(np.argsort(-counts, kind="stable")[:ITEMS])
        popular = popular[counts[popular] > 0]
        inverse = _pairs(users, items, popular)
        inverse[np.diag_indices_from(inverse)] += PENALTY
        inverse = linalg.inv(inverse, overwrite_a=True, check_finite=False, assume_a="pos")
        diagonal = inverse.diagonal().copy()
        most = min(NEIGHBOURS, len(popular) - 1)
        rows, columns, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
        for start in range(0, len(popular) if most > 0 else 0, _BLOCK):
            of_rows = -inverse[start : start + _BLOCK] / diagonal
            places = np.arange(len(of_rows))
            # The item's own, which is the smallest then, stays out.
            of_rows[places, start + places] = 0.0
            largest = np.argpartition(-np.abs(of_rows), most - 1, axis=1)[:, :most]
            rows.append(np.repeat(popular[start + places], most))
            columns.append(popular[largest].ravel())
            weights.append(np.take_along_axis(of_rows, largest, axis=1).ravel())
        pairs = np.concatenate(rows), np.concatenate(columns)
        values = np.concatenate(weights).astype(np.float32)
        return cls(sparse.csr_array((values, pairs), (num_items, num_items)))

    def related(self, past: Indices, out: Indices) -> RelatedItems:
        """Items that a user's past, in any order, speaks for, without the items `out`.

        Equal scores are in the order of the items table.
        """
        size = self._weights.shape[0]
        had = np.unique(np.asarray(past, np.int64))
        rows = self._weights[had[had < size]]
        return RelatedItems.summed(rows.indices, rows.data, out, size)

    def save(self, folder: Path) -> None:
        """Writes the weights to `ease.npz` in a folder, whole or not at all."""
        save_pairs(folder / FILE, self._weights)

    @classmethod
    def load(cls, folder: Path) -> Ease:
        """Reads what `save` wrote; raises DataError where it is missing or damaged."""
        return cls(load_pairs(folder / FILE))


def _pairs(users: np.ndarray, items: np.ndarray, popular: np.ndarray) -> np.ndarray:
    """How many users had both of two popular items: float32 `[n, n]`."""
    there = np.isin(items, popular)
    _, rows = np.unique(users[there], return_inverse=True)
    places = (rows, np.searchsorted(popular, items[there]))
    size = (int(rows.max(initial=-1)) + 1, len(popular))
    acted = sparse.csc_array((np.ones(len(rows), np.float32), places), size)
    acted.data[:] = 1.0  # once, however often
    pairs = np.empty((len(popular), len(popular)), np.float32)
    # All at once, the product would take three times the memory before it is dense.
    for start in range(0, len(popular), _BLOCK):
        pairs[start : start + _BLOCK] = (acted[:, start : start + _BLOCK].T @ acted).toarray()
    return pairs
