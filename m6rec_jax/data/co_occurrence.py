"""Which items stand near which in users' sequences, and a candidate's nearness in words.

People act in bursts: what others did around the items that a user acted on last says most about
what this user does next. `Nearness` counts, as events come, how often two items stand within a few
places of each other in somebody's sequence, in either order: those next to each other count 1,
those d places apart 1/d. A candidate stands near a user's recent items by the mean of its shares of
theirs, and what a model reads is its rank among all items that the user has not seen ("near 3: ").
A rank means the same however much has been counted, as early in a data set as when it is served.

    nearness = Nearness(num_items)
    nearness.update(user, item)                    # event by event
    near = nearness.near(recent, seen)             # items, nearest first, and their shares
    texts = near_texts(item_texts, near, items)    # what is scored
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.grouping import Group
from m6rec_jax.data.splits import TRAIN
from m6rec_jax.data.statistics import Statistics
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.records import Event, Item

FILE = "nearness.parquet"
# Raise it when counts or words change, so that data prepared before are prepared again.
FORMAT = 1
# Up to that rank, ranks are rounded up to multiples of that step: few words, each seen often.
_STEPS = ((20, 1), (50, 2), (100, 5), (300, 20))
_LAST_STEP, _LAST_RANK = 100, 1_000


@gin.configurable
@dataclasses.dataclass(frozen=True)
class NearnessOptions:
    """How nearness is counted and told; saved with the counts.

    Attributes:
      window: how many places apart two items may stand; an event adds at most twice as many pairs.
      recent: how many of a user's last items candidates are compared with; the k-th last one counts
        1/k.
      smoothing: an item's neighbours weigh less while there are few of them: their shares are of
        what was counted and so much more.
    """

    window: int = 10
    recent: int = 10
    smoothing: float = 20.0

    def __post_init__(self) -> None:
        if self.window < 1 or self.recent < 1 or self.smoothing < 0:
            raise ConfigError(
                "NearnessOptions need a window and recent items of 1 or more and no negative "
                f"smoothing, not window={self.window}, recent={self.recent}, "
                f"smoothing={self.smoothing}"
            )


class NearItems(NamedTuple):
    """Items near a user's last ones, nearest first.

    Attributes:
      items: int64 `[n]`, places in the items table.
      shares: float64 `[n]`, which share they have of what stood near the last items, 0 to 1.
    """

    items: np.ndarray
    shares: np.ndarray


class Nearness:
    """Counts of pairs of items that stood near each other.

    Memory: a dictionary entry for every pair that occurred, at most `2 * window` per event.

    Args:
      num_items: of the items table, whose places items are named by.
      options: None: gin's or the defaults.
    """

    def __init__(self, num_items: int, options: NearnessOptions | None = None) -> None:
        self.options = options or NearnessOptions()
        self.num_items = num_items
        # Item -> item -> how much they stood near each other; symmetric.
        self._near: dict[int, dict[int, float]] = {}
        self._total = np.zeros(num_items)
        # User -> the last items, oldest first. Not saved: a request brings its history.
        self._last: dict[str, list[int]] = {}

    def update(self, user: str, item: int) -> None:
        """Counts the next event of a user.

        Args:
          user: whose sequence it is; events of unlike users may come in any order.
          item: place in the items table.
        """
        last = self._last.setdefault(user, [])
        for distance, other in enumerate(reversed(last), 1):
            if other != item:
                self._add(item, other, 1.0 / distance)
                self._add(other, item, 1.0 / distance)
        last.append(item)
        del last[: -self.options.window]

    def near(self, recent: Sequence[int], seen: Collection[int] = ()) -> NearItems:
        """Items near the recent ones, nearest first; equally near ones in the order of the table.

        Args:
          recent: a user's items, oldest first; the last `options.recent` of them count.
          seen: items to leave out, beside the recent ones.
        """
        scores: dict[int, float] = {}
        last = recent[-self.options.recent :]
        places = sum(1.0 / place for place in range(1, len(last) + 1))
        for place, item in enumerate(reversed(last), 1):
            row = self._near.get(item)
            if row is None:
                continue
            weight = 1.0 / (place * places * (self._total[item] + self.options.smoothing))
            for other, near in row.items():
                scores[other] = scores.get(other, 0.0) + weight * near
        for item in itertools.chain(recent, seen):
            scores.pop(item, None)
        items = np.fromiter(scores.keys(), np.int64, len(scores))
        # Rounded: the order in which sums were made must not decide between equals.
        shares = np.round(np.fromiter(scores.values(), np.float64, len(scores)), 12)
        order = np.lexsort((items, -shares))
        return NearItems(items[order], shares[order])

    def _add(self, item: int, other: int, amount: float) -> None:
        row = self._near.setdefault(item, {})
        row[other] = row.get(other, 0.0) + amount
        self._total[item] += amount

    # ---- files

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the counts to `nearness.parquet` in a folder, whole or not at all."""
        pairs = [
            (item, other, near)
            for item, row in sorted(self._near.items())
            for other, near in sorted(row.items())
        ]
        columns = zip(*pairs, strict=True) if pairs else ([], [], [])
        types = {"item": pa.int32(), "other": pa.int32(), "near": pa.float64()}
        table = pa.table(
            {
                name: pa.array(list(values), kind)
                for (name, kind), values in zip(types.items(), columns, strict=True)
            }
        )
        described = {"num_items": self.num_items, "options": dataclasses.asdict(self.options)}
        table = table.replace_schema_metadata({"nearness": json.dumps(described)})
        path = Path(folder) / FILE
        scratch = path.with_name(path.name + ".partial")
        pq.write_table(table, scratch, compression="zstd")
        scratch.replace(path)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
          DataError: it is missing or damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise DataError(
                f"{path} is missing; `m6rec data prepare` writes it with the view 'reranking' "
                "(PrepareOptions.views)"
            )
        try:
            table = pq.read_table(path)
            described = json.loads((table.schema.metadata or {})[b"nearness"])
            found = cls(int(described["num_items"]), NearnessOptions(**described["options"]))
            columns = (table.column(name).to_pylist() for name in ("item", "other", "near"))
            for item, other, near in zip(*columns, strict=True):
                found._near.setdefault(item, {})[other] = near
                found._total[item] += near
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path} is damaged ({error}); prepare the data set again") from error
        return found


def near_texts(texts: Sequence[str], near: NearItems, items: Sequence[int]) -> list[str]:
    """What a reranker reads of each candidate: "near 3: The Great Dictator (1940), comedy".

    Args:
      texts: of the catalogue, in the order of the items table.
      near: of `Nearness.near`.
      items: the candidates, as places in the table.
    """
    rank: Mapping[int, int] = {item: place for place, item in enumerate(near.items.tolist(), 1)}
    return [f"{near_words(rank.get(item))}: {texts[item]}" for item in items]


def near_words(rank: int | None) -> str:
    """A rank in words: exact up to 20, then ever coarser; "not near" without one."""
    if rank is None:
        return "not near"
    step = next((step for limit, step in _STEPS if rank <= limit), _LAST_STEP)
    return f"near {min(-(-rank // step) * step, _LAST_RANK)}"


class NearCandidates:
    """Draws the candidates of reranking rows and tells them.

    Args:
      nearness: as of the moment of the group that is asked about.
      texts: of the catalogue, in the order of the items table.
      never: items that are never drawn, as places in the table (held-out items).
      negatives: drawn per row.
      depth: from so many of the nearest items.
      seed: of all draws.
    """

    def __init__(
        self,
        nearness: Nearness,
        texts: Sequence[str],
        never: Sequence[int] = (),
        *,
        negatives: int,
        depth: int,
        seed: int,
    ) -> None:
        self.nearness = nearness
        self._texts = texts
        self._never = frozenset(never)
        self._negatives, self._depth, self._seed = negatives, depth, seed

    def draw(self, group: Group) -> tuple[list[int], list[str]] | None:
        """The candidates of a group, the wanted item first, and what is told of each.

        Of a group's items the first is wanted: it came right after the history. What came later may
        be drawn as any other item: candidates depend on nothing later than the row.

        Returns:
          Places in the items table and texts; None for a training row that would teach nothing:
          the wanted item is not on the list, or the list has nothing else.
        """
        wanted = group.items[0]
        near = self.nearness.near(group.history_items, group.seen)
        listed = near.items[: self._depth].tolist()
        pool = [item for item in listed if item != wanted and item not in self._never]
        if group.part == TRAIN and (wanted not in listed or not pool):
            return None
        key = f"{self._seed}:{group.user}:{len(group.seen)}:{wanted}"
        digest = hashlib.blake2b(key.encode()).digest()
        random = np.random.default_rng(list(digest))
        drawn = random.choice(len(pool), min(self._negatives, len(pool)), replace=False)
        items = [wanted, *(pool[place] for place in drawn.tolist())]
        return items, near_texts(self._texts, near, items)


class CountedTogether:
    """Statistics and nearness that take the same events at the same time, for `as_of`.

    Args:
      statistics: takes every event.
      nearness: takes those that do not tell of their user only.
      items: of the items table.
    """

    def __init__(self, statistics: Statistics, nearness: Nearness, items: Sequence[Item]) -> None:
        self._statistics, self._nearness = statistics, nearness
        self._places = {item.id: place for place, item in enumerate(items)}

    def update(self, event: Event, item: Item, *, of_user_only: bool = False) -> None:
        """See `Statistics.update`."""
        self._statistics.update(event, item, of_user_only=of_user_only)
        if not of_user_only:
            self._nearness.update(event.user_id, self._places[item.id])
