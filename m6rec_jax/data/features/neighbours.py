"""What pairs of items say about a user and an item: items valued alike, items acted on together.

Pairs join users, so that they are counted over the events of all of them, in the order of time.
Counting is cheap where nobody asks on the way: a process answers the queries of one time slice,
and before that counts the pairs of all that went before.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from scipy import sparse

from m6rec_jax.data.features import pair_counts
from m6rec_jax.data.features.epochs import PastCounts, WindowEntries
from m6rec_jax.data.features.pair_counts import PairCounts
from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.data.splitting.timeline import Timeline

# How much likelier one item makes another is pulled towards "no likelier" as if by so many users.
NEIGHBOUR_SMOOTHING = 5.0
# Pulls the similarity of each pair of items towards zero, in the unit of squared values.
SIMILARITY_SMOOTHING = 10.0
# The weight of the user's share of all items beside those that are valued alike: a tie-break, an
# item of a similarity of 0.1 weighs as much.
_OWN_WEIGHT = 0.1
# Bounds on memory: pairs that are counted together, about 100 bytes each, and events.
_PAIRS_AT_ONCE = 500_000
_EVENTS_AT_ONCE = 100_000
# Of a group: its place in the timeline, the user's share of liked items, and where its items and
# the user's window are.
GROUP = np.dtype(
    [("place", np.int64), ("user_share", np.float64)]
    + [(name, np.int64) for name in ("low", "high", "window_low", "window_high")]
)
WINDOW = np.dtype([("item", np.int32), ("value", np.float64)])


class ItemSums(NamedTuple):
    """Of items: users who acted on each, sums of squared differences, smoothed means `[n]`."""

    holders: np.ndarray
    squares: np.ndarray
    means: np.ndarray


def features(
    counted: StatisticsSettings,
    pairs: np.ndarray,
    items: ItemSums,
    window: ItemSums,
    values: np.ndarray,
    num_users: int,
    user_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What pairs of items say of items to a user.

    Args:
      counted: what the statistics count.
      pairs: both counters of items and those of the user's window `[2, items, window]`.
      items, window: what is known of both.
      values: that the user gave to the window's items `[window]`.
      num_users: all of them.
      user_share: the user's share of liked items.

    Returns:
      `user_taste_difference`; and the share of `user_neighbours_percent`, or where every event is
      positive `user_neighbours_times`. NaN where there is no such feature `[items]`.
    """
    together, products = pairs
    above = second = np.full(len(together), np.nan)
    if counted.at_least is None:
        # How much likelier than to others an item is to users who acted on each of the window.
        chance = items.holders[:, None] / num_users
        weight = NEIGHBOUR_SMOOTHING  # towards "no likelier"
        lift = (together + weight * chance) / (window.holders + weight) / chance
        # Summed in sorted order, so that the order of the window cannot change a digit.
        second = np.asarray([row.mean() for row in np.sort(lift, axis=1)])
    if counted.has_values:
        scale = np.sqrt(np.outer(items.squares, window.squares))
        similarity = products / (scale + SIMILARITY_SMOOTHING)
        # The 1 stands for an item valued just alike that the user gave its mean.
        above = similarity @ (values - window.means) / (np.abs(similarity).sum(axis=1) + 1.0)
        if counted.at_least is not None:
            alike = np.maximum(similarity, 0.0)
            liked = alike @ (values >= counted.at_least) + _OWN_WEIGHT * user_share
            second = liked / (alike.sum(axis=1) + _OWN_WEIGHT)
    return above, second


class NeighbourQueries(NamedTuple):
    """Items that are asked about, by group.

    Attributes:
      groups: of the fields `GROUP` `[groups]`.
      items: numbers of items, in the order in which items came first `[items]`.
      window: items of the users' windows, and the values that they gave them: the fields `WINDOW`.
    """

    groups: np.ndarray
    items: np.ndarray
    window: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Maps what `write` left."""
        kinds = {"groups": GROUP, "items": np.dtype(np.int32), "window": WINDOW}
        # An empty file cannot be mapped.
        return cls(
            *(
                np.asarray(np.memmap(path, kind, "r"))
                if (path := folder / name).stat().st_size
                else np.empty(0, kind)
                for name, kind in kinds.items()
            )
        )

    @classmethod
    def write(cls, folder: Path, pieces: Iterable[NeighbourQueries]) -> list[slice]:
        """Puts pieces down, one after the other; returns where the items of each are."""
        folder.mkdir()
        ends, num_windows = [0], 0
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((folder / name).open("wb")) for name in cls._fields]
            for piece in pieces:
                groups = piece.groups.copy()
                for name in ("low", "high"):
                    groups[name] += ends[-1]
                    groups[f"window_{name}"] += num_windows
                ends.append(ends[-1] + len(piece.items))
                num_windows += len(piece.window)
                for file, array in zip(files, (groups, piece.items, piece.window), strict=True):
                    array.tofile(file)
        return [slice(*pair) for pair in itertools.pairwise(ends)]


class NeighbourFold:
    """Counts pairs along the timeline and answers what is asked on the way.

    Args:
      timeline: of all users.
      entries: of their windows.
      item_number: number of each item, in the order in which items came first `[items]`.
      counted: what the statistics count.
      past: of an update: pairs that are counted already.

    Attributes:
      pairs: the counts, by numbers of items.
    """

    def __init__(
        self,
        timeline: Timeline,
        entries: WindowEntries,
        item_number: np.ndarray,
        counted: StatisticsSettings,
        past: PastCounts | None = None,
    ) -> None:
        self._timeline, self._entries, self._counted = timeline, entries, counted
        self._item_number = item_number
        num_items = len(item_number)
        self._first = np.sort(timeline.first_place(np.arange(num_items)))
        large = num_items > pair_counts.DENSE_ITEMS
        others = _of_one_user(entries, num_items) if large else None
        keys, counts = past.pairs if past else (None, None)
        self.pairs = PairCounts(num_items, keys, counts, others)
        # Of the events whose pairs are not counted yet.
        self._first_place = past.num_events if past else 0
        self._count, self._holders = np.zeros((2, num_items), np.int64)
        self._total, self._square = np.zeros((2, num_items))
        self._num_users = self._place = self._num_entries = 0

    def answer(self, queries: NeighbourQueries, order: Sequence[int]) -> Iterator[np.ndarray]:
        """What pairs say of all items of the groups of some numbers, in the order of places.

        Yields:
          for each group what `features` says of its items, NaN where nothing is known `[2, items]`.
        """
        for group in queries.groups[order]:
            place, user_share, low, high, window_low, window_high = group.tolist()
            self.advance(place)
            items = queries.items[low:high]
            answers = np.full((2, len(items)), np.nan)
            there = self._first[items] < place
            if window_low < window_high and there.any():
                window = queries.window[window_low:window_high]
                answers[:, there] = features(
                    self._counted,
                    self.pairs.get(items[there], window["item"]),
                    self._sums(items[there]),
                    self._sums(window["item"]),
                    window["value"],
                    self._num_users,
                    user_share,
                )
            yield answers

    def advance(self, place: int) -> None:
        """Takes in all events before a place."""
        if place <= self._place:
            return
        entries = self._entries
        end = int(np.searchsorted(entries.places, place))
        while self._num_entries < end:
            start = self._num_entries
            # As many as have about so many pairs, but one at least.
            some = entries.by_place[start : min(end, start + _EVENTS_AT_ONCE)]
            lengths = np.cumsum(some - entries.low[some])
            some = some[: max(1, int(np.searchsorted(lengths, _PAIRS_AT_ONCE)))]
            self._count_pairs(some)
            self._num_entries += len(some)
        for start in range(self._place, place, _EVENTS_AT_ONCE):
            self._count_items(slice(start, min(start + _EVENTS_AT_ONCE, place)))
        self._place = place

    def _sums(self, items: np.ndarray) -> ItemSums:
        mean = self._timeline.total[self._place] / self._timeline.count[self._place]
        means = self._counted.smoothed(self._total[items], self._count[items], mean)
        return ItemSums(self._holders[items], self._square[items], means)

    def _count_pairs(self, entering: np.ndarray) -> None:
        """Counts entries, by their numbers, with all that the windows of their users hold."""
        entries = self._entries
        items, differences = entries.item[entering], entries.difference[entering]
        low = entries.low[entering]
        lengths = entering - low
        self._num_users += int(np.count_nonzero(lengths == 0))
        lengths[entries.place[entering] < self._first_place] = 0
        ends = np.cumsum(lengths)
        if ends[-1]:
            others = np.arange(ends[-1])
            others += np.repeat(low - ends + lengths, lengths)
            products = np.repeat(differences, lengths)
            products *= entries.difference[others]
            self.pairs.add(np.repeat(items, lengths), entries.item[others], products)
        np.add.at(self._holders, items, 1)
        np.add.at(self._square, items, differences * differences)

    def _count_items(self, places: slice) -> None:
        timeline = self._timeline
        counted = timeline.counted[places]
        items = self._item_number[timeline.item[places][counted]]
        np.add.at(self._count, items, 1)
        np.add.at(self._total, items, timeline.value[places][counted])


def _of_one_user(entries: WindowEntries, num_items: int) -> sparse.csr_array:
    """Pairs of items that were in the window of the same user, the smaller number first."""
    there = np.ones(len(entries.user), bool)
    window = sparse.csr_array((there, (entries.user, entries.item)))
    window.resize(window.shape[0], num_items)
    return sparse.triu(window.T @ window, 1, format="csr").astype(bool)
