"""Which items occur together in users' sequences, and a candidate's rank by that in words.

People act in bursts: what others did around the items that a user acted on last says most about
what this user does next. `CoOccurrence` counts how often two items occur within a window of
somebody's sequence, in either order; a pair at distance d counts 1/d. How much of that was in the
order of the two is kept, too. A candidate's share is the mean of its shares in the counts of the
user's recent items. A model reads its rank among all items that the user has not seen ("near 3: "),
because a rank means the same however much has been counted, as early in a data set as when the
model is served. Amounts are whole numbers of so small a unit that a sum does not depend on the
order in which it was made.

    counts = CoOccurrence.counted(users, items, num_items)
    related = counts.related(recent, seen)           # items and shares, highest first
    texts = ranked_texts(item_texts, related, items) # what is scored

`GrowingCoOccurrence` stands at a moment that is moved on.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file

FILE = "co_occurrence.parquet"
# Raise it when counts or words change, so that data prepared before are prepared again.
FORMAT = 4
# Up to that rank, ranks are rounded up to multiples of that step: few words, each seen often.
_STEPS = ((20, 1), (50, 2), (100, 5), (300, 20))
_LAST_STEP, _LAST_RANK = 100, 1_000
# Events whose pairs are looked up together, about 700 bytes each.
_EVENTS_AT_ONCE = 50_000
# Of the database in which pairs are summed; what does not fit is spilled to disk.
_MEMORY = "512MB"
_COLUMNS = {
    **{"item": pa.int32(), "other": pa.int32()},
    **{"amount": pa.int64(), "later": pa.int64(), "total": pa.int64()},
}
# Largest distance of two items; an event adds at most twice as many pairs.
WINDOW = 10
# How many of a user's last items candidates are compared with; the k-th last one weighs 1/k.
RECENT = 10
# Added to an item's total, so that items with few counts weigh less.
SMOOTHING = 20.0
# Of amounts. A multiple of it is 1/d for every distance d up to 10.
ONE = 2520 << 16


class RelatedItems(NamedTuple):
    """Items that occur with a user's recent ones, highest share first.

    Attributes:
      items: int64 `[n]`, indices in the items table.
      shares: float64 `[n]`, from 0 to 1.
    """

    items: np.ndarray
    shares: np.ndarray


class CoOccurrence:
    """Counts of pairs of items. Memory: 24 bytes for each pair that occurs.

    Args:
      num_items: of the items table, by whose indices items are named.
      keys: of the pairs, `item << 32 | other`, ascending; each pair is there in both orders
        `[pairs]`.
      amounts: of the pairs, int64, `ONE` for 1 `[pairs]`.
      totals: sums of the amounts of each item, likewise `[items]`.
      later: of the amounts, what was counted where the other came after the item `[pairs]`.
    """

    def __init__(
        self,
        num_items: int,
        keys: np.ndarray | None = None,
        amounts: np.ndarray | None = None,
        totals: np.ndarray | None = None,
        later: np.ndarray | None = None,
    ) -> None:
        self.num_items = num_items
        self.keys = np.zeros(0, np.int64) if keys is None else keys
        self.amounts = np.zeros(0, np.int64) if amounts is None else amounts
        self.totals = np.zeros(num_items, np.int64) if totals is None else totals
        self.later = np.zeros(0, np.int64) if later is None else later
        # Of each item's pairs.
        self._starts = np.searchsorted(self.keys, np.arange(num_items + 1) << 32).tolist()

    @classmethod
    def counted(cls, users: np.ndarray, items: np.ndarray, num_items: int) -> CoOccurrence:
        """Counts all events, given in the order of time: their users and items `[events]`."""
        sequences = _Sequences(users, items)
        lows = range(0, len(users), _EVENTS_AT_ONCE)
        keys, amounts, later = _summed_pairs(
            sequences.pairs(low, low + _EVENTS_AT_ONCE)[:2] for low in lows
        )
        totals = np.zeros(num_items, np.int64)
        np.add.at(totals, keys >> 32, amounts)
        return cls(num_items, keys, amounts, totals, later)

    def related(
        self, recent: Sequence[int] | np.ndarray, out: Sequence[int] | np.ndarray | None = None
    ) -> RelatedItems:
        """Items that occur with the recent ones; equal shares in the order of the items table.

        Args:
          recent: a user's items, oldest first; the last `RECENT` of them count.
          out: items to leave out; None: the recent ones.
        """
        return self._shares(self.amounts, self.totals, SMOOTHING, recent, out)

    def followers(
        self, recent: Sequence[int] | np.ndarray, out: Sequence[int] | np.ndarray | None = None
    ) -> RelatedItems:
        """As `related`, by what came after the recent ones alone, with half the smoothing."""
        return self._shares(self.later, self._later_totals, SMOOTHING / 2, recent, out)

    @functools.cached_property
    def _later_totals(self) -> np.ndarray:
        """Sums of `later` of each item `[items]`; of counts that grow no more."""
        totals = np.zeros(self.num_items, np.int64)
        np.add.at(totals, self.keys >> 32, self.later)
        return totals

    def _shares(
        self,
        amounts: np.ndarray,
        totals: np.ndarray,
        smoothing: float,
        recent: Sequence[int] | np.ndarray,
        out: Sequence[int] | np.ndarray | None,
    ) -> RelatedItems:
        last = [int(item) for item in recent[-RECENT:]]
        weights = sum(1.0 / position for position in range(1, len(last) + 1))
        others, terms = [np.zeros(0, np.int64)], [np.zeros(0)]
        for position, item in enumerate(reversed(last), 1):
            row = slice(self._starts[item], self._starts[item + 1])
            total = totals[item] + ONE * smoothing
            weight = 1.0 / (position * weights * total)
            others.append(self.keys[row] & 0xFFFFFFFF)
            terms.append(weight * amounts[row])
        items, scores = _summed(np.concatenate(others), np.concatenate(terms), self.num_items)
        out = np.asarray(recent if out is None else out, np.int64)
        scores[out if len(items) == self.num_items else np.isin(items, out)] = 0.0
        left = scores > 0
        # Rounded: the order in which sums were made must not decide between equals.
        items, shares = items[left], np.round(scores[left], 12)
        order = np.lexsort((items, -shares))
        return RelatedItems(items[order], shares[order])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the counts to `co_occurrence.parquet` in a folder, whole or not at all."""
        described = {"num_items": self.num_items}
        items = self.keys >> 32
        others = self.keys & 0xFFFFFFFF
        columns = (items, others, self.amounts, self.later, self.totals[items])
        schema = pa.schema(list(_COLUMNS.items()), {"counts": json.dumps(described)})
        table = pa.table(
            [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema=schema
        )
        with atomic_file(Path(folder) / FILE) as scratch:
            pq.write_table(table, scratch, compression="zstd")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote; raises DataError where it is missing or damaged."""
        with counted_file(Path(folder) / FILE) as path:
            table = pq.read_table(path)
            described = json.loads((table.schema.metadata or {})[b"counts"])
            items, others, amounts, later, totals = (
                table.column(name).to_numpy(zero_copy_only=False) for name in _COLUMNS
            )
            keys = items.astype(np.int64) << 32 | others
            of_items = np.zeros(int(described["num_items"]), np.int64)
            of_items[items] = totals
            return cls(len(of_items), keys, amounts, of_items, later)


@contextlib.contextmanager
def counted_file(path: Path) -> Iterator[Path]:
    """Yields a file to be read; raises DataError where it is missing or damaged."""
    if not path.is_file():
        raise DataError(
            f"{path} is missing; `m6rec data prepare` writes it with the views 'next_items' and "
            "'reranking' (PrepareOptions.views)"
        )
    try:
        yield path
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data set again") from error


class GrowingCoOccurrence(CoOccurrence):
    """Counts as of a moment. All events are given beforehand, so that every pair has its place.

    Args:
      users, items: of events in the order of time `[events]`.
      start: what was counted before.
      context: so many of the events are part of that already: later ones come after them. Of each
        user the last `WINDOW` are needed.
    """

    def __init__(
        self, users: np.ndarray, items: np.ndarray, start: CoOccurrence, context: int = 0
    ) -> None:
        self._sequences = _Sequences(users, items)
        lows = range(context, len(users), _EVENTS_AT_ONCE)
        added = (self._sequences.pairs(low, low + _EVENTS_AT_ONCE)[0] for low in lows)
        begun = (start.keys, np.stack([start.amounts, start.later], axis=1))
        keys, amounts, later = _summed_pairs(
            itertools.chain([begun], ((keys, np.zeros((len(keys), 2), np.int64)) for keys in added))
        )
        totals = start.totals.copy()
        super().__init__(start.num_items, keys, amounts, totals, later)
        self._number = self._high = context

    def advance(self, number: int) -> None:
        """Counts all events before a number that are not counted yet."""
        while self._number < number:
            if self._number == self._high:
                self._low, self._high = self._high, self._high + _EVENTS_AT_ONCE
                keys, self._added, self._offsets = self._sequences.pairs(self._low, self._high)
                self._places, self._of_items = np.searchsorted(self.keys, keys), keys >> 32
            end = min(number, self._high)
            some = slice(*self._offsets[[self._number - self._low, end - self._low]].tolist())
            np.add.at(self.amounts, self._places[some], self._added[some, 0])
            np.add.at(self.later, self._places[some], self._added[some, 1])
            np.add.at(self.totals, self._of_items[some], self._added[some, 0])
            self._number = end


class _Sequences:
    """Events of all users, and which pairs each of them adds: see `GrowingCoOccurrence`."""

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self._items = items.astype(np.int64)
        self._order = np.argsort(users, kind="stable")
        # Of each event its place in the order of users, and that of its user's first event.
        self._rank = np.empty(len(users), np.int64)
        self._rank[self._order] = np.arange(len(users))
        by_user = users[self._order]
        self._first = np.searchsorted(by_user, by_user)[self._rank]

    def pairs(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What some events add: keys `[pairs]`, amounts `[pairs, 2]`, offsets `[events + 1]`.

        In the order of events, each pair in both orders. The second amount is what was counted
        where the other came later.
        """
        distances = np.arange(1, WINDOW + 1)
        before = self._rank[low:high, None] - distances
        known = before >= self._first[low:high, None]
        others = self._items[self._order[np.maximum(before, 0)]]
        items = np.broadcast_to(self._items[low:high, None], others.shape)
        known &= others != items
        one, other = items[known], others[known]
        keys = np.stack([one << 32 | other, other << 32 | one], axis=1).ravel()
        amounts = np.rint(ONE / distances).astype(np.int64)
        both = np.repeat(np.broadcast_to(amounts, known.shape)[known], 2)
        # The event's own item came later than the other.
        amounts = np.stack([both, both * (np.arange(len(both)) % 2)], axis=1)
        return keys, amounts, np.concatenate([[0], 2 * np.cumsum(known.sum(axis=1))])


def _summed_pairs(
    pieces: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums by key of more pairs than fit in memory: they wait on disk.

    Args:
      pieces: keys `[n]` in any order, some perhaps several times, and amounts `[n, 2]`.

    Returns:
      distinct keys, ascending, and the sums of both amounts `[pairs]` int64 each.
    """
    import duckdb  # serving, which reads counts, goes without

    with tempfile.TemporaryDirectory(prefix="m6rec-pairs-") as folder:
        config: dict[str, Any] = {
            "memory_limit": _MEMORY,
            "threads": 2,  # each takes some of the memory
            "temp_directory": f"{folder}/spilled",
        }
        with duckdb.connect(f"{folder}/pairs.duckdb", config=config) as database:
            database.execute("SET preserve_insertion_order = false")
            database.begin()  # one commit: each of its own would wait for the disk
            database.execute("CREATE TABLE pairs (key BIGINT, amount BIGINT, later BIGINT)")
            for keys, amounts in pieces:
                columns = {"key": keys, "amount": amounts[:, 0], "later": amounts[:, 1]}
                database.register("piece", pa.table(columns))
                database.execute("INSERT INTO pairs SELECT * FROM piece")
                database.unregister("piece")
            found = database.execute(
                """SELECT key, sum(amount)::BIGINT AS amount, sum(later)::BIGINT AS later
                FROM pairs GROUP BY key ORDER BY key"""
            ).fetchnumpy()
    return found["key"], found["amount"], found["later"]


def _summed(keys: np.ndarray, terms: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys below `size`, ascending, and the sums of their terms in the order given."""
    if len(keys) > size // 10:
        return np.arange(size), np.bincount(keys, terms, size)
    found, inverse = np.unique(keys, return_inverse=True)
    return found, np.bincount(inverse, terms, len(found))


def ranked_texts(texts: Sequence[str], related: RelatedItems, items: Sequence[int]) -> list[str]:
    """What a reranker reads of each candidate: "near 3: The Great Dictator (1940), comedy".

    Args:
      texts: of the catalogue, in the order of the items table.
      related: of `CoOccurrence.related`.
      items: the candidates, as indices in the table.
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
