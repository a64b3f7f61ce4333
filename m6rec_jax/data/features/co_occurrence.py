"""Which items occur together in users' sequences.

People act in bursts: what others did around the items that a user acted on last says most about
what this user does next. `CoOccurrence` counts how often two items occur within a window of
somebody's sequence; a pair at distance d counts 1/d. A candidate's share is the mean of its shares
in the counts of the user's recent items. Amounts are whole numbers of so small a unit that a sum
does not depend on the order in which it was made.

    counts = CoOccurrence.counted(users, items, num_items)
    related = counts.related(recent, seen)  # items and shares, highest first
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import sparse

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file

FILE = "co_occurrence.npz"
# Raise it when counts change, so that data prepared before are prepared again.
FORMAT = 5
# Events whose pairs are looked up together, about 700 bytes each.
_EVENTS_AT_ONCE = 50_000
# Largest distance of two items; an event adds at most as many pairs.
WINDOW = 10
# How many of a user's last items candidates are compared with; the k-th last one weighs 1/k.
RECENT = 10
# Added to an item's total, so that items with few counts weigh less.
SMOOTHING = 20.0
# Of amounts. A multiple of it is 1/d for every distance d up to 10.
ONE = 2520 << 16


# Of items in the items table.
Indices: TypeAlias = Sequence[int] | np.ndarray


class RelatedItems(NamedTuple):
    """Items that go with a user's, indices int64 `[n]`, and shares above 0, highest first."""

    items: np.ndarray
    shares: np.ndarray

    @classmethod
    def summed(
        cls, items: np.ndarray, terms: np.ndarray, out: Indices, num_items: int
    ) -> RelatedItems:
        """Sums the terms of each item `[n]`, in the order given, and leaves out the items `out`.

        Equal sums are in the order of the items table, which has `num_items`.
        """
        if len(items) > num_items // 10:
            scores, items = np.bincount(items, terms, num_items), np.arange(num_items)
        else:
            items, inverse = np.unique(items, return_inverse=True)
            scores = np.bincount(inverse, terms, len(items))
        scores[np.isin(items, np.asarray(out, np.int64))] = 0.0
        left = scores > 0
        # Rounded: the order in which sums were made must not decide between equals.
        items, shares = items[left].astype(np.int64), np.round(scores[left], 12)
        order = np.lexsort((items, -shares))
        return cls(items[order], shares[order])


class CoOccurrence:
    """Counts of pairs of items. Memory: at most 24 bytes for each pair, in both orders.

    Args:
      later: of pairs where the item of the column came after that of the row, int64, `ONE` for 1
        `[items, items]`.

    Attributes:
      amounts: the same of both orders `[items, items]`.
    """

    def __init__(self, later: sparse.csr_array) -> None:
        self.later, self.num_items = later, later.shape[0]
        self.amounts = (later + later.T).tocsr()

    @classmethod
    def counted(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        num_items: int,
        before: CoOccurrence | None = None,
        context: int = 0,
    ) -> CoOccurrence:
        """Counts all events, given in the order of time: their users and items `[events]`.

        The first `context` events are part of what was counted `before`, perhaps of the first items
        alone: later ones come after them. Of each user the last `WINDOW` of them are needed.
        """
        items, shape = items.astype(np.int64), (num_items, num_items)
        later = sparse.csr_array(shape, dtype=np.int64)
        if before is not None:
            later = before.later.copy()
            later.resize(shape)
        # Of each event its place in the order of users, and that of its user's first event.
        order = np.argsort(users, kind="stable")
        rank = np.empty(len(users), np.int64)
        rank[order] = np.arange(len(users))
        first = np.searchsorted(users[order], users)
        distances = np.arange(1, WINDOW + 1)
        for low in range(context, len(users), _EVENTS_AT_ONCE):
            some = slice(low, low + _EVENTS_AT_ONCE)
            earlier = rank[some, None] - distances
            others = items[order[np.maximum(earlier, 0)]]
            itself = np.broadcast_to(items[some, None], others.shape)
            there = (earlier >= first[some, None]) & (others != itself)
            amounts = np.broadcast_to(np.rint(ONE / distances).astype(np.int64), others.shape)
            later = later + sparse.csr_array(
                (amounts[there], (others[there], itself[there])), shape
            )
        return CoOccurrence(later)

    def related(self, recent: Indices, out: Indices | None = None) -> RelatedItems:
        """Items that occur with the last `RECENT` of a user's items, which are oldest first,
        without the items `out` (None: the recent ones). Equal shares are in the order of the items
        table.
        """
        return _shares(self.amounts, SMOOTHING, recent, out)

    def shares(self, recent: Indices, others: Indices) -> np.ndarray:
        """Shares of other items in the counts of recent ones `[recent, others]`; 0 for item -1."""
        rows, columns = self.amounts[np.asarray(recent, np.int64)], np.asarray(others, np.int64)
        amounts = rows[:, columns].toarray() * (columns >= 0)
        return np.round(amounts / (rows.sum(axis=1) + ONE * SMOOTHING)[:, None], 12)

    def followers(self, recent: Indices, out: Indices | None = None) -> RelatedItems:
        """As `related`, by what came after the recent ones alone, with half the smoothing."""
        return _shares(self.later, SMOOTHING / 2, recent, out)

    def save(self, folder: Path) -> None:
        """Writes the counts to `co_occurrence.npz` in a folder, whole or not at all."""
        save_pairs(folder / FILE, self.later)

    @classmethod
    def load(cls, folder: Path) -> CoOccurrence:
        """Reads what `save` wrote; raises DataError where it is missing or damaged."""
        return cls(load_pairs(folder / FILE))


def save_pairs(path: Path, pairs: sparse.csr_array) -> None:
    """Writes numbers of pairs of items, whole or not at all."""
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        sparse.save_npz(file, pairs.sorted_indices(), compressed=False)


def load_pairs(path: Path) -> sparse.csr_array:
    """Reads what `save_pairs` wrote; raises DataError where it is missing or damaged."""
    if not path.is_file():
        raise DataError(
            f"{path} is missing; `m6rec data prepare` writes it with the view 'next_items' "
            "(PrepareOptions.views)"
        )
    try:
        return sparse.load_npz(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data set again") from error


def _shares(
    amounts: sparse.csr_array, smoothing: float, recent: Indices, out: Indices | None
) -> RelatedItems:
    rows = amounts[np.asarray(recent[-RECENT:], np.int64)[::-1]]
    positions = np.arange(1, rows.shape[0] + 1)
    totals = positions * (1.0 / positions).sum() * (rows.sum(axis=1) + ONE * smoothing)
    terms, out = rows.data / np.repeat(totals, np.diff(rows.indptr)), recent if out is None else out
    return RelatedItems.summed(rows.indices, terms, out, amounts.shape[0])
