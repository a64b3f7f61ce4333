"""The candidates of the view 'reranking': drawn from what occurs with a user's last items.

Co-occurrence joins users, so that buckets cannot count it: they say what they ask, and one process
answers all of them on its way along the events (`draw_all`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from m6rec_jax.data.co_occurrence import CoOccurrence, GrowingCoOccurrence
from m6rec_jax.data.splits import TRAIN
from m6rec_jax.data.user_bucket import Ranges


class RerankingCandidates:
    """Draws the candidates of reranking rows.

    Args:
      counts: as of the moment of the group that is asked about.
      held_out: which items are never drawn `[items]` bool.
      negatives: drawn per row.
      depth: from so many of the most related items.
      seed: of all draws.
      repeats: whether an item that the user had before may be wanted or drawn.
    """

    def __init__(
        self,
        counts: CoOccurrence,
        held_out: np.ndarray,
        *,
        negatives: int,
        depth: int,
        seed: int,
        repeats: bool,
    ) -> None:
        self.counts = counts
        self._held_out = held_out
        self._negatives, self._depth, self._seed = negatives, depth, seed
        self._repeats = repeats

    def draw(
        self,
        part: int,
        user: int,
        wanted: int,
        recent: Sequence[int] | np.ndarray,
        seen: Sequence[int] | np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The candidates of a group, the wanted item first, and their ranks by co-occurrence.

        Of a group's items the first is wanted: it came right after the history. What came later may
        be drawn as any other item: candidates depend on nothing later than the row.

        Args:
          part: code of the group's part.
          user: index in the users table.
          wanted: index in the items table, as all items.
          recent: the last items of the history, oldest first.
          seen: all items that the user had before, the recent ones among them.

        Returns:
          items and ranks, 0 for none, int64 `[candidates]` both; None for a training row that would
          teach nothing: the wanted item is not on the list, or the list has nothing else.
        """
        items = self.counts.related(recent, () if self._repeats else seen).items
        listed = items[: self._depth]
        pool = np.flatnonzero((listed != wanted) & ~self._held_out[listed])
        # Its rank less one, if it has one.
        place = np.flatnonzero(items == wanted)
        if part == TRAIN and (not len(pool) or not (place < self._depth).any()):
            return None
        key = f"{self._seed}:{user}:{len(seen)}:{wanted}"
        digest = np.frombuffer(hashlib.blake2b(key.encode()).digest(), np.uint8)
        random = np.random.default_rng(digest.astype(np.uint32))
        drawn = pool[random.choice(len(pool), min(self._negatives, len(pool)), replace=False)]
        rank = place[0] + 1 if len(place) else 0
        return np.append(wanted, listed[drawn]), np.append(rank, drawn + 1)


@dataclasses.dataclass(frozen=True)
class AskedCandidates:
    """Groups that need candidates. All `[groups]`, but for the items that ranges point to.

    Attributes:
      number: of the counted events before each group's moment.
      part, user, wanted: see `RerankingCandidates.draw`.
      recent, seen: where the items of each are in `recent_items`, `seen_items`.
    """

    number: np.ndarray
    part: np.ndarray
    user: np.ndarray
    wanted: np.ndarray
    recent: Ranges
    recent_items: np.ndarray
    seen: Ranges
    seen_items: np.ndarray


@dataclasses.dataclass(frozen=True)
class DrawnCandidates:
    """Candidates of groups, in arrays.

    Attributes:
      counts: candidates of each group, 0 where it has no row `[groups]`.
      items, ranks: the first so many count; int32 `[groups, 1 + negatives]`.
    """

    counts: np.ndarray
    items: np.ndarray
    ranks: np.ndarray


def draw_all(  # type: ignore[no-untyped-def]
    candidates: RerankingCandidates,
    growing: GrowingCoOccurrence,
    asked: Sequence[AskedCandidates],
    negatives: int,
    bar,
) -> list[DrawnCandidates]:
    """Answers what buckets ask, in one pass; `growing` is what `candidates` are drawn by."""
    sizes = [len(one.number) for one in asked]
    counts = np.zeros(sum(sizes), np.int32)
    items, ranks = np.zeros((2, len(counts), 1 + negatives), np.int32)
    numbers = np.concatenate([one.number for one in asked])
    order = np.argsort(numbers, kind="stable")
    bucket = np.repeat(np.arange(len(asked)), sizes)[order]
    begins = np.cumsum(sizes) - sizes
    for row, number, place in zip(
        *(column.tolist() for column in (order, numbers[order], bucket)), strict=True
    ):
        growing.advance(number)
        one, group = asked[place], row - begins[place]
        drawn = candidates.draw(
            int(one.part[group]),
            int(one.user[group]),
            int(one.wanted[group]),
            one.recent_items[one.recent.low[group] : one.recent.high[group]],
            one.seen_items[one.seen.low[group] : one.seen.high[group]],
        )
        if drawn is not None:
            counts[row] = len(drawn[0])
            items[row, : counts[row]], ranks[row, : counts[row]] = drawn
        bar.update()
    ends = np.cumsum(sizes)[:-1]
    split = (np.split(column, ends) for column in (counts, items, ranks))
    return [DrawnCandidates(*columns) for columns in zip(*split, strict=True)]
