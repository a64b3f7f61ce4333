"""Rows of the view 'reranking': what came next, among items that stood as near.

A reranker orders the best of a long list, so it is trained on candidates that are hard to tell
apart: the item that came next and items drawn from those nearest to the user's last ones, as of
that moment (see `tables.nearness`). All of the list are drawn alike: a draw by popularity would
teach that popular items are seldom wanted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from m6rec_jax.tables.grouping import Group
from m6rec_jax.tables.nearness import Nearness, near_texts
from m6rec_jax.tables.splits import TRAIN
from m6rec_jax.tables.statistics import Statistics
from m6rec_jax.text.records import Event, Item


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
