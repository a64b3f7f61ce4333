"""Which items occur together in users' sequences, and a candidate's rank by that in words.

People act in bursts: what others did around the items that a user acted on last says most about
what this user does next. `CoOccurrence` counts how often two items occur within a window of
somebody's sequence; a pair at distance d counts 1/d. A candidate's share is the mean of its shares
in the counts of the user's recent items. A model reads its rank among all items that the user has
not seen ("near 3: "), because a rank means the same however much has been counted, as early in a
data set as when the model is served. Amounts are whole numbers of so small a unit that a sum does
not depend on the order in which it was made.

    counts = CoOccurrence.counted(users, items, num_items)
    related = counts.related(recent, seen)           # items and shares, highest first
    texts = ranked_texts(item_texts, related, items) # what is scored

`GrowingCoOccurrence` stands at a moment that is moved on.
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
# Raise it when counts or words change, so that data prepared before are prepared again.
FORMAT = 5
# Up to that rank, ranks are rounded up to multiples of that step: few words, each seen often.
_STEPS = ((20, 1), (50, 2), (100, 5), (300, 20))
_LAST_STEP, _LAST_RANK = 100, 1_000
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
        """Counts all events, given in the order of time.

        Args:
          users, items: of the events `[events]`.
          num_items: of the items table.
          before: what was counted before, perhaps of the first items alone.
          context: so many of the events are part of that already: later ones come after them. Of
            each user the last `WINDOW` are needed.
        """
        sequences, shape = _Sequences(users, items), (num_items, num_items)
        later = sparse.csr_array(shape, dtype=np.int64)
        if before is not None:
            later = before.later.copy()
            later.resize(shape)
        for low in range(context, len(users), _EVENTS_AT_ONCE):
            others, itself, amounts, _ = sequences.pairs(low, low + _EVENTS_AT_ONCE)
            later = later + sparse.csr_array((amounts, (others, itself)), shape)
        return CoOccurrence(later)

    def related(self, recent: Indices, out: Indices | None = None) -> RelatedItems:
        """Items that occur with the recent ones; equal shares in the order of the items table.

        Args:
          recent: a user's items, oldest first; the last `RECENT` of them count.
          out: items to leave out; None: the recent ones.
        """
        return _shares(self.amounts, SMOOTHING, recent, out)

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
            f"{path} is missing; `m6rec data prepare` writes it with the views 'next_items' and "
            "'reranking' (PrepareOptions.views)"
        )
    try:
        return sparse.load_npz(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data set again") from error


class GrowingCoOccurrence(CoOccurrence):
    """Counts as of a moment, of which `related` alone is to be had.

    All events are given beforehand, so that every pair has its place.

    Args:
      users, items, num_items, before, context: see `CoOccurrence.counted`.
    """

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        num_items: int,
        before: CoOccurrence | None = None,
        context: int = 0,
    ) -> None:
        super().__init__(CoOccurrence.counted(users, items, num_items, before, context).later)
        self._sequences, self._number, self._high = _Sequences(users, items), context, context
        self.amounts.sort_indices()
        rows = np.repeat(np.arange(num_items), np.diff(self.amounts.indptr))
        self._keys = rows * num_items + self.amounts.indices
        self.amounts.data[:] = 0
        if before is not None:
            pairs = before.amounts.tocoo()
            self.amounts.data[self._places(pairs.row, pairs.col)] = pairs.data

    def advance(self, number: int) -> None:
        """Counts all events before a number that are not counted yet."""
        while self._number < number:
            if self._number == self._high:
                self._low, self._high = self._high, self._high + _EVENTS_AT_ONCE
                others, items, amounts, lengths = self._sequences.pairs(self._low, self._high)
                # Each pair in both orders.
                places = self._places(np.append(others, items), np.append(items, others))
                self._added = places.reshape(2, -1), np.stack([amounts, amounts])
                self._offsets = np.append(0, np.cumsum(lengths))
            end = min(number, self._high)
            some = slice(*self._offsets[[self._number - self._low, end - self._low]].tolist())
            places, amounts = (of[:, some] for of in self._added)
            np.add.at(self.amounts.data, places, amounts)
            self._number = end

    def _places(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        # In order, keys are looked up ten times faster.
        keys, inverse = np.unique(
            rows.astype(np.int64) * self.num_items + columns, return_inverse=True
        )
        return np.searchsorted(self._keys, keys)[inverse]


class _Sequences:
    """Events of all users, and which pairs each of them adds: see `CoOccurrence.counted`."""

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self._items = items.astype(np.int64)
        self._order = np.argsort(users, kind="stable")
        # Of each event its place in the order of users, and that of its user's first event.
        self._rank = np.empty(len(users), np.int64)
        self._rank[self._order] = np.arange(len(users))
        by_user = users[self._order]
        self._first = np.searchsorted(by_user, by_user)[self._rank]

    def pairs(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What some events add: earlier items, the events' items, and amounts `[pairs]`; and how
        many pairs each event has.
        """
        distances = np.arange(1, WINDOW + 1)
        before = self._rank[low:high, None] - distances
        others = self._items[self._order[np.maximum(before, 0)]]
        items = np.broadcast_to(self._items[low:high, None], others.shape)
        there = (before >= self._first[low:high, None]) & (others != items)
        amounts = np.broadcast_to(np.rint(ONE / distances).astype(np.int64), others.shape)
        return others[there], items[there], amounts[there], there.sum(axis=1)


def _shares(
    amounts: sparse.csr_array, smoothing: float, recent: Indices, out: Indices | None
) -> RelatedItems:
    last = [int(item) for item in recent[-RECENT:]]
    weights = sum(1.0 / position for position in range(1, len(last) + 1))
    others, terms = [np.zeros(0, np.int64)], [np.zeros(0)]
    for position, item in enumerate(reversed(last), 1):
        row = slice(amounts.indptr[item], amounts.indptr[item + 1])
        of_item = amounts.data[row]
        total = int(of_item.sum()) + ONE * smoothing
        others.append(amounts.indices[row])
        terms.append(of_item * (1.0 / (position * weights * total)))
    out = recent if out is None else out
    return RelatedItems.summed(np.concatenate(others), np.concatenate(terms), out, amounts.shape[0])


def ranked_texts(texts: Sequence[str], related: RelatedItems, items: Sequence[int]) -> list[str]:
    """What a reranker reads of each candidate: "near 3: The Great Dictator (1940), comedy".

    Args: texts of the catalogue, `CoOccurrence.related`, and the candidates.
    """
    ranks = {item: rank for rank, item in enumerate(related.items.tolist(), 1)}
    return [ranked_text(ranks.get(item, 0), texts[item]) for item in items]


def ranked_text(rank: int, text: str) -> str:
    """`ranked_texts` of one item; rank 0: it does not occur with the recent ones."""
    return f"{rank_words(rank)}: {text}"


def rank_words(rank: int) -> str:
    """A rank in words: exact up to 20, then ever coarser; "not near" without one (0)."""
    if not rank:
        return "not near"
    step = next((step for limit, step in _STEPS if rank <= limit), _LAST_STEP)
    return f"near {min(-(-rank // step) * step, _LAST_RANK)}"
