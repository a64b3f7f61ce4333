"""Counts over pairs of items: in a square array for a small catalogue, in a sparse one else.

For a pair of items: how many users acted on both, and the sum over them of the product of the
differences of their values from the mean. The first tells which items go together, both tell which
are valued alike.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

# Up to so many items the two counters are square arrays (4,096² × 2 × 4 bytes = 134 MB).
DENSE_ITEMS = 4_096


class PairCounts:
    """Two counters for every pair of items. Memory: 8 bytes for each cell of a square, 20 for each
    pair that occurs in a larger catalogue.

    Args:
      num_items: items are numbered from 0 to below this.
      keys, counts: of `to_arrays`, to begin with.
      others: pairs that may be added, too: not zero where the smaller number is the row
        `[items, items]`; a catalogue of up to `DENSE_ITEMS` needs none.
    """

    def __init__(
        self,
        num_items: int,
        keys: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        others: sparse.csr_array | None = None,
    ) -> None:
        pairs = np.divmod(np.zeros(0, np.int64) if keys is None else keys, 1 << 32)
        self._num_items, self._numbers, size = num_items, None, num_items**2
        if num_items > DENSE_ITEMS:
            numbers = sparse.csr_array((np.ones(len(pairs[0]), bool), pairs), (num_items,) * 2)
            numbers = numbers if others is None else numbers + others
            # Number 0 is that of all pairs that do not occur.
            size = numbers.nnz + 1
            numbers.data = np.arange(1, size)
            self._numbers = numbers
        # Counts are exact up to 2^24.
        self._counts = np.zeros((2, size), np.float32)
        if counts is not None:
            self._counts[:, self._places(*pairs)] = counts.T

    def add(self, ones: np.ndarray, others: np.ndarray, products: np.ndarray) -> None:
        """Adds 1 and products to the counters of pairs `[n]`, in any order of the two."""
        places = self._places(ones, others)
        np.add.at(self._counts[0], places, np.float32(1))
        np.add.at(self._counts[1], places, products.astype(np.float32))

    def get(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Both counters of pairs of rows `[r]` and columns `[c]`: `[2, r, c]`."""
        return self._counts.take(self._places(rows[:, None], columns), axis=1)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted keys `smaller << 32 | larger` of pairs whose first counter is not zero `[p]`, and
        counters `[p, 2]`."""
        places = np.flatnonzero(self._counts[0])
        if self._numbers is None:
            rows, columns = np.divmod(places, max(self._num_items, 1))
        else:
            rows, columns = (of[places - 1].astype(np.int64) for of in self._numbers.tocoo().coords)
        return rows << 32 | columns, np.ascontiguousarray(self._counts[:, places].T)

    def _places(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        rows, columns = np.minimum(ones, others), np.maximum(ones, others)
        if self._numbers is None:
            return rows.astype(np.int64) * self._num_items + columns
        if not rows.size:  # SciPy answers no question with a sparse array
            return np.zeros(rows.shape, np.int64)
        return np.asarray(self._numbers[rows.ravel(), columns.ravel()]).reshape(rows.shape)
