"""Counts over pairs of items, kept as events arrive: dense for small catalogues, else sparse.

For a pair of items: how many users acted on both, and the sum over them of the product of the
differences of their values from the mean. The first tells which items go together, both tell which
are valued alike.
"""

from __future__ import annotations

import numpy as np

# Counts are exact up to 2^24.
_DTYPE = np.float32
# Up to this many items the two counters are square arrays (4,096² × 2 × 4 bytes = 134 MB).
DENSE_ITEMS = 4_096


class PairCounts:
    """Two counters for every pair of items.

    Memory: dense, 8 bytes per cell of a square array; beyond `dense_items` items an open-addressing
    hash table in numpy, 32 to 64 bytes per pair that occurred.

    Args:
      dense_items: largest number of items that is kept as square arrays.
    """

    def __init__(self, dense_items: int = DENSE_ITEMS) -> None:
        self._dense_items = dense_items
        self._dense: np.ndarray | None = np.zeros((2, 64, 64), _DTYPE) if dense_items else None
        self._table = _HashTable()

    def add_symmetric(self, rows: np.ndarray, columns: np.ndarray, products: np.ndarray) -> None:
        """Adds 1 and products to the counters of pairs `[n]`, both ways, one after the other."""
        both = np.empty((2, len(rows), 2), np.int64)
        both[0, :, 0] = both[1, :, 1] = rows
        both[0, :, 1] = both[1, :, 0] = columns
        firsts, seconds = both.reshape(2, -1)
        self._make_room(int(firsts.max()) + 1)
        if self._dense is None:
            amounts = np.ones((len(firsts), 2))
            amounts[:, 1] = np.repeat(products, 2)
            self._table.add(_keys(firsts, seconds), amounts.astype(_DTYPE))
            return
        firsts *= self._dense.shape[1]
        firsts += seconds
        counts, sums = self._dense.reshape(2, -1)
        np.add.at(counts, firsts, _DTYPE(1))
        np.add.at(sums, firsts, np.repeat(products.astype(_DTYPE), 2))

    def get(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both counters, each `[r, c]`, for rows `[r]` and columns `[c]`."""
        if self._dense is None:
            counts = self._table.get(_keys(rows[:, None], columns[None, :]).ravel())
            shape = (len(rows), len(columns))
            return counts[:, 0].reshape(shape), counts[:, 1].reshape(shape)
        size = self._dense.shape[1]
        if rows.max(initial=-1) >= size or columns.max(initial=-1) >= size:
            self._make_room(int(max(rows.max(initial=0), columns.max(initial=0))) + 1)
            return self.get(rows, columns)
        cells = self._dense[:, rows[:, None], columns[None, :]]
        return cells[0], cells[1]

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs that occurred, sorted: keys `row << 32 | column` `[p]` and counters `[p, 2]`.

        A pair has occurred when its first counter is not zero.
        """
        if self._dense is None:
            return self._table.to_arrays()
        rows, columns = np.nonzero(self._dense[0])
        return _keys(rows, columns), np.ascontiguousarray(self._dense[:, rows, columns].T)

    def load(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Adds what `to_arrays` returned."""
        if not len(keys):
            return
        rows, columns = keys >> 32, keys & 0xFFFFFFFF
        self._make_room(int(max(rows.max(), columns.max())) + 1)
        if self._dense is not None:
            self._dense[:, rows, columns] += counts.T.astype(_DTYPE)
        else:
            self._table.add(keys, counts.astype(_DTYPE))

    def _make_room(self, num_items: int) -> None:
        if self._dense is None or num_items <= self._dense.shape[1]:
            return
        if num_items > self._dense_items:
            keys, counts = self.to_arrays()
            self._dense = None
            self._table.add(keys, counts)
            return
        size = min(self._dense_items, max(num_items, 2 * self._dense.shape[1]))
        grown = np.zeros((2, size, size), _DTYPE)
        old = self._dense.shape[1]
        grown[:, :old, :old] = self._dense
        self._dense = grown


def _keys(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return rows.astype(np.int64) << 32 | columns.astype(np.int64)


class _HashTable:
    """Non-negative int64 keys -> two counters; linear probing, at most half full."""

    def __init__(self) -> None:
        self._used = 0
        self._allocate(1 << 10)

    def _allocate(self, capacity: int) -> None:
        self._keys = np.full(capacity, -1, np.int64)
        self._counts: np.ndarray = np.zeros((capacity, 2), _DTYPE)

    def add(self, keys: np.ndarray, amounts: np.ndarray) -> None:
        """Adds `amounts` `[n, 2]` to the counters of `keys` `[n]`, one after the other."""
        keys, inverse = np.unique(keys, return_inverse=True)
        capacity = len(self._keys)
        if 2 * (self._used + len(keys)) > capacity:
            while 2 * (self._used + len(keys)) > capacity:
                capacity *= 2
            old_keys, old_counts = self.to_arrays()
            self._used = 0
            self._allocate(capacity)
            self.add(old_keys, old_counts)
        slots = self._find(keys, insert=True)[inverse]
        for counter, amount in zip(self._counts.T, amounts.T, strict=True):
            np.add.at(counter, slots, amount)

    def get(self, keys: np.ndarray) -> np.ndarray:
        """The counters `[n, 2]` of `keys` `[n]`, zero for those never added."""
        return self._counts[self._find(keys, insert=False)]

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys in ascending order and their counters."""
        filled = np.flatnonzero(self._keys >= 0)
        filled = filled[np.argsort(self._keys[filled])]
        return self._keys[filled], self._counts[filled]

    def _find(self, keys: np.ndarray, *, insert: bool) -> np.ndarray:
        """Slots `[n]` of distinct `keys`; an empty slot (of zeros) where one is missing."""
        mask = len(self._keys) - 1
        # Fibonacci hashing: the upper bits of the product are well mixed, the lower are not.
        shift = np.uint64(64 - mask.bit_length())
        mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        slots = (mixed >> shift).astype(np.int64)
        pending = np.arange(len(keys))
        while len(pending):
            here = slots[pending]
            found = self._keys[here]
            wanted = keys[pending]
            empty = found == -1
            if insert:
                # Two keys may want one empty slot: the last writer gets it, the other goes on.
                self._keys[here[empty]] = wanted[empty]
                done = self._keys[here] == wanted
                self._used += int((done & empty).sum())
            else:
                done = (found == wanted) | empty
            pending = pending[~done]
            slots[pending] = slots[pending] + 1 & mask
        return slots
