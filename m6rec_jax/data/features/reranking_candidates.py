"""The candidates of the view 'reranking': drawn from what occurs with a user's last items.

Co-occurrence joins users, so that no part of the users can count it alone: each says what it asks,
and one process answers all of them on its way along the events (`draw_all`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from m6rec_jax.data.features.co_occurrence import CoOccurrence, GrowingCoOccurrence, Indices
from m6rec_jax.data.features.user_events import Ranges
from m6rec_jax.data.splitting.splits import TRAIN

# Candidates of a row beside the wanted one, drawn from so many of the most related items.
NEGATIVES, DEPTH = 11, 200


@dataclasses.dataclass(frozen=True)
class RerankingCandidates:
    """Draws the candidates of reranking rows.

    Attributes:
      counts: as of the moment of the group that is asked about.
      held_out: which items are never drawn `[items]` bool.
      repeats: whether an item that the user had before may be wanted or drawn.
    """

    counts: CoOccurrence
    held_out: np.ndarray
    repeats: bool

    def draw(
        self, part: int, user: int, wanted: int, recent: Indices, seen: Indices
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The candidates of a group, the wanted item first, and their ranks by co-occurrence.

        Of a group's items the first is wanted: it came right after the history. What came later may
        be drawn as any other item: candidates depend on nothing later than the row.

        Args:
          part: code of the group's part.
          user, wanted: indices in the tables of users and items, as all items.
          recent: the last items of the history, oldest first.
          seen: all items that the user had before, the recent ones among them.

        Returns:
          items and ranks, 0 for none, int64 `[candidates]` both; None for a training row that would
          teach nothing: the wanted item is not on the list, or the list has nothing else.
        """
        items = self.counts.related(recent, () if self.repeats else seen).items
        listed = items[:DEPTH]
        pool = np.flatnonzero((listed != wanted) & ~self.held_out[listed])
        # Its rank less one, if it has one.
        place = np.flatnonzero(items == wanted)
        if part == TRAIN and (not len(pool) or not (place < DEPTH).any()):
            return None
        key = f"0:{user}:{len(seen)}:{wanted}"
        digest = np.frombuffer(hashlib.blake2b(key.encode()).digest(), np.uint8)
        random = np.random.default_rng(digest.astype(np.uint32))
        drawn = pool[random.choice(len(pool), min(NEGATIVES, len(pool)), replace=False)]
        rank = place[0] + 1 if len(place) else 0
        return np.append(wanted, listed[drawn]), np.append(rank, drawn + 1)


@dataclasses.dataclass(frozen=True)
class CandidateQueries:
    """Groups that need candidates: `number` of the counted events before each one's moment, the
    other columns as of `RerankingCandidates.draw`, items by where they are `[groups]`.
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
      items, ranks: the first so many count; int32 `[groups, 1 + NEGATIVES]`.
    """

    counts: np.ndarray
    items: np.ndarray
    ranks: np.ndarray


def draw_all(
    candidates: RerankingCandidates,
    growing: GrowingCoOccurrence,
    queries: Sequence[CandidateQueries],
    bar: tqdm,
) -> list[DrawnCandidates]:
    """Answers all queries in one pass; `growing` is what `candidates` are drawn by."""
    drawn = []
    for groups in queries:
        size = len(groups.number)
        places = np.zeros((2, size, 1 + NEGATIVES), np.int32)
        drawn.append(DrawnCandidates(np.zeros(size, np.int32), *places))
    sizes = [len(groups.number) for groups in queries]
    owners = np.repeat(np.arange(len(queries)), sizes)
    numbers = np.concatenate([groups.number for groups in queries])
    rows = np.concatenate([np.arange(size) for size in sizes])
    for place in np.argsort(numbers, kind="stable").tolist():
        growing.advance(int(numbers[place]))
        groups, into, row = queries[owners[place]], drawn[owners[place]], rows[place]
        of_row = candidates.draw(
            int(groups.part[row]),
            int(groups.user[row]),
            int(groups.wanted[row]),
            groups.recent_items[groups.recent.low[row] : groups.recent.high[row]],
            groups.seen_items[groups.seen.low[row] : groups.seen.high[row]],
        )
        if of_row is not None:
            into.counts[row] = count = len(of_row[0])
            into.items[row, :count], into.ranks[row, :count] = of_row
        bar.update()
    return drawn
