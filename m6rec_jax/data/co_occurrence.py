"""Which items occur together in users' sequences, and a candidate's rank by that in words.

People act in bursts: what others did around the items that a user acted on last says most about
what this user does next. `CoOccurrence` counts, as events come, how often two items occur within a
window of somebody's sequence, in either order; a pair at distance d counts 1/d. A candidate's share
is the mean of its shares in the counts of the user's recent items. A model reads its rank among
all items that the user has not seen ("near 3: "), because a rank means the same however much has
been counted, as early in a data set as when the model is served.

    counts = CoOccurrence(num_items)
    counts.update(user, item)                        # event by event
    related = counts.related(recent, seen)           # items and shares, highest first
    texts = ranked_texts(item_texts, related, items) # what is scored
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.grouping import Group
from m6rec_jax.data.splits import TRAIN
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import atomic_file

FILE = "co_occurrence.parquet"
# Raise it when counts or words change, so that data prepared before are prepared again.
FORMAT = 1
# Up to that rank, ranks are rounded up to multiples of that step: few words, each seen often.
_STEPS = ((20, 1), (50, 2), (100, 5), (300, 20))
_LAST_STEP, _LAST_RANK = 100, 1_000
# A bound on memory: about 100 bytes each.
_PAIRS_AT_ONCE = 10_000_000
_COLUMNS = {"item": pa.int32(), "other": pa.int32(), "amount": pa.float64()}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CoOccurrenceOptions:
    """How items are counted; saved with the counts.

    Attributes:
      window: largest distance of two items; an event adds at most twice as many pairs.
      recent: how many of a user's last items candidates are compared with; the k-th last one weighs
        1/k.
      smoothing: added to an item's total, so that items with few counts weigh less.
    """

    window: int = 10
    recent: int = 10
    smoothing: float = 20.0

    def __post_init__(self) -> None:
        if self.window < 1 or self.recent < 1 or self.smoothing < 0:
            raise ConfigError(
                "CoOccurrenceOptions need a window and recent items of 1 or more and no negative "
                f"smoothing, not {self}"
            )


class RelatedItems(NamedTuple):
    """Items that occur with a user's recent ones, highest share first.

    Attributes:
      items: int64 `[n]`, indices in the items table.
      shares: float64 `[n]`, from 0 to 1.
    """

    items: np.ndarray
    shares: np.ndarray


class CoOccurrence:
    """Counts of pairs of items. Memory: at most `2 * window` dictionary entries per event.

    Args:
      num_items: of the items table, by whose indices items are named.
      options: None: gin's or the defaults.
    """

    def __init__(self, num_items: int, options: CoOccurrenceOptions | None = None) -> None:
        self.options = options or CoOccurrenceOptions()
        self.num_items = num_items
        # Item -> item -> amount; symmetric.
        self._pairs: dict[int, dict[int, float]] = {}
        self._total = np.zeros(num_items)
        # User -> the last items, oldest first. Not saved: a request brings its history.
        self._last: dict[str, list[int]] = {}

    def update(self, user: str, item: int) -> None:
        """Counts the next event of a user; users may come in any order."""
        last = self._last.setdefault(user, [])
        for distance, other in enumerate(reversed(last), 1):
            if other != item:
                self._add(item, other, 1.0 / distance)
                self._add(other, item, 1.0 / distance)
        last.append(item)
        del last[: -self.options.window]

    def related(self, recent: Sequence[int], seen: Collection[int] = ()) -> RelatedItems:
        """Items that occur with the recent ones; equal shares in the order of the items table.

        Args:
          recent: a user's items, oldest first; the last `options.recent` of them count.
          seen: items to leave out, beside the recent ones.
        """
        scores: dict[int, float] = {}
        last = recent[-self.options.recent :]
        weights = sum(1.0 / position for position in range(1, len(last) + 1))
        for position, item in enumerate(reversed(last), 1):
            row = self._pairs.get(item)
            if row is None:
                continue
            total = self._total[item] + self.options.smoothing
            weight = 1.0 / (position * weights * total)
            for other, amount in row.items():
                scores[other] = scores.get(other, 0.0) + weight * amount
        for item in itertools.chain(recent, seen):
            scores.pop(item, None)
        items = np.fromiter(scores.keys(), np.int64, len(scores))
        # Rounded: the order in which sums were made must not decide between equals.
        shares = np.round(np.fromiter(scores.values(), np.float64, len(scores)), 12)
        order = np.lexsort((items, -shares))
        return RelatedItems(items[order], shares[order])

    def _add(self, item: int, other: int, amount: float) -> None:
        row = self._pairs.setdefault(item, {})
        row[other] = row.get(other, 0.0) + amount
        self._total[item] += amount

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the counts to `co_occurrence.parquet` in a folder, whole or not at all."""
        pairs = [
            (item, other, amount)
            for item, row in sorted(self._pairs.items())
            for other, amount in sorted(row.items())
        ]
        columns = zip(*pairs, strict=True) if pairs else ([], [], [])
        write_counts(folder, self.num_items, self.options, *columns)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote; raises DataError where it is missing or damaged."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise DataError(
                f"{path} is missing; `m6rec data prepare` writes it with the views 'next_items' "
                "and 'reranking' (PrepareOptions.views)"
            )
        try:
            table = pq.read_table(path)
            described = json.loads((table.schema.metadata or {})[b"counts"])
            found = cls(int(described["num_items"]), CoOccurrenceOptions(**described["options"]))
            columns = (table.column(name).to_pylist() for name in _COLUMNS)
            for item, other, amount in zip(*columns, strict=True):
                found._pairs.setdefault(item, {})[other] = amount
                found._total[item] += amount
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path} is damaged ({error}); prepare the data set again") from error
        return found


def write_counts(
    folder: str | os.PathLike[str],
    num_items: int,
    options: CoOccurrenceOptions,
    items: Sequence[int] | np.ndarray,
    others: Sequence[int] | np.ndarray,
    amounts: Sequence[float] | np.ndarray,
) -> None:
    """Writes counts of pairs `[pairs]`, sorted by item and other, for `CoOccurrence.load`."""
    described = {"num_items": num_items, "options": dataclasses.asdict(options)}
    schema = pa.schema(list(_COLUMNS.items()), {"counts": json.dumps(described)})
    table = pa.table(
        [pa.array(c, t) for c, t in zip((items, others, amounts), schema.types, strict=True)],
        schema=schema,
    )
    with atomic_file(Path(folder) / FILE) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def counted_pairs(
    users: np.ndarray, items: np.ndarray, num_items: int, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts all pairs at once: what `CoOccurrence.update` makes of events one by one.

    Args:
      users, items: of events in the order of time `[events]`.
      num_items: of the items table.
      window: of `CoOccurrenceOptions`.

    Returns:
      item, other, amount `[pairs]`, sorted by item and other.
    """
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order].astype(np.int64)
    parts = -(-len(items) * 2 * window // _PAIRS_AT_ONCE)
    found = []
    for low, high in itertools.pairwise((num_items * np.arange(parts + 1) // parts).tolist()):
        columns: list[tuple[np.ndarray, ...]] = []
        for distance in range(1, window + 1):
            later = np.arange(distance, len(items))
            later = later[
                (users[later] == users[later - distance])
                & (items[later] != items[later - distance])
            ]
            for one, other in ((later, later - distance), (later - distance, later)):
                mine = (items[one] >= low) & (items[one] < high)
                keys = items[one[mine]] * num_items + items[other[mine]]
                # When it was counted: amounts are added up in this order.
                when = order[later[mine]] * window + distance
                columns.append((keys, when, np.full(len(keys), 1.0 / distance)))
        keys, when, amounts = map(np.concatenate, zip(*columns, strict=True))
        of_time = np.argsort(when, kind="stable")
        pairs, inverse = np.unique(keys[of_time], return_inverse=True)
        found.append((pairs, np.bincount(inverse, amounts[of_time], len(pairs))))
    pairs, amounts = map(np.concatenate, zip(*found, strict=True))
    return pairs // num_items, pairs % num_items, amounts


def ranked_texts(texts: Sequence[str], related: RelatedItems, items: Sequence[int]) -> list[str]:
    """What a reranker reads of each candidate: "near 3: The Great Dictator (1940), comedy".

    Args:
      texts: of the catalogue, in the order of the items table.
      related: of `CoOccurrence.related`.
      items: the candidates, as indices in the table.
    """
    ranks = {item: rank for rank, item in enumerate(related.items.tolist(), 1)}
    return [f"{rank_words(ranks.get(item))}: {texts[item]}" for item in items]


def rank_words(rank: int | None) -> str:
    """A rank in words: exact up to 20, then ever coarser; "not near" without one."""
    if rank is None:
        return "not near"
    step = next((step for limit, step in _STEPS if rank <= limit), _LAST_STEP)
    return f"near {min(-(-rank // step) * step, _LAST_RANK)}"


class RerankingCandidates:
    """Draws the candidates of reranking rows.

    Args:
      counts: as of the moment of the group that is asked about.
      texts: of the catalogue, in the order of the items table.
      never: indices of items that are never drawn (held-out items).
      negatives: drawn per row.
      depth: from so many of the most related items.
      seed: of all draws.
    """

    def __init__(
        self,
        counts: CoOccurrence,
        texts: Sequence[str],
        never: Sequence[int] = (),
        *,
        negatives: int,
        depth: int,
        seed: int,
    ) -> None:
        self.counts = counts
        self._texts = texts
        self._never = frozenset(never)
        self._negatives, self._depth, self._seed = negatives, depth, seed

    def draw(self, group: Group) -> tuple[list[int], list[str]] | None:
        """The candidates of a group, the wanted item first, and their texts.

        Of a group's items the first is wanted: it came right after the history. What came later may
        be drawn as any other item: candidates depend on nothing later than the row.

        Returns:
          Indices in the items table and texts; None for a training row that would teach nothing:
          the wanted item is not on the list, or the list has nothing else.
        """
        wanted = group.items[0]
        related = self.counts.related(group.history_items, group.seen)
        listed = related.items[: self._depth].tolist()
        pool = [item for item in listed if item != wanted and item not in self._never]
        if group.part == TRAIN and (wanted not in listed or not pool):
            return None
        key = f"{self._seed}:{group.user}:{len(group.seen)}:{wanted}"
        digest = hashlib.blake2b(key.encode()).digest()
        random = np.random.default_rng(list(digest))
        drawn = random.choice(len(pool), min(self._negatives, len(pool)), replace=False)
        items = [wanted, *(pool[index] for index in drawn.tolist())]
        return items, ranked_texts(self._texts, related, items)
