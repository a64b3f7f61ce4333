"""What pairs of items say about a user and an item: items valued alike, items acted on together.

Pairs join users, so that they are counted over the events of all of them, in the order of time.
Counting is cheap where nobody asks on the way: a process answers the queries of one time slice,
and before that counts the pairs of all that went before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from scipy import sparse

from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.data.features.timeline import MappedArrays, Timeline, sums_before
from m6rec_jax.data.features.windows import WindowEntries
from m6rec_jax.io.mapped_arrays import mapped_array

# Up to so many items the two counters are square arrays (4,096² × 2 × 4 bytes = 134 MB).
DENSE_ITEMS = 4_096
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


class PairCounts:
    """Two counters for every pair of items, numbered from 0 to below `num_items`: users who acted
    on both, and the sum over them of the products of their values' differences from the mean.

    Begins with `keys` and `counts` of `to_arrays`. Above `DENSE_ITEMS` items only those pairs and
    those of the keys `others` may be added. Memory: 8 bytes for each cell of a square, 16 for each
    pair that occurs in a larger catalogue.
    """

    def __init__(
        self,
        num_items: int,
        keys: Sequence[int] | np.ndarray = (),
        counts: np.ndarray | None = None,
        others: Sequence[int] | np.ndarray = (),
    ) -> None:
        self._num_items, self._keys, size = num_items, np.zeros(0, np.int64), num_items**2
        if num_items > DENSE_ITEMS:
            # All pairs that do not occur have the last place.
            # As integers: numbers of so many digits are not exact as floats.
            occurring = np.union1d(np.asarray(keys, np.int64), np.asarray(others, np.int64))
            self._keys = np.append(occurring, np.iinfo(np.int64).max)
            size = len(self._keys)
        # Counts are exact up to 2^24.
        self._counts = np.zeros((2, size), np.float32)
        if counts is not None:
            self._counts[:, self._places(*np.divmod(keys, 1 << 32))] = counts.T

    def add(self, ones: np.ndarray, others: np.ndarray, products: np.ndarray) -> None:
        """Adds 1 and products to the counters of pairs `[n]`, in any order of the two."""
        places = self._places(ones, others)
        np.add.at(self._counts[0], places, np.float32(1))
        np.add.at(self._counts[1], places, products.astype(np.float32))

    def get(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Both counters of pairs of rows `[r]` and columns `[c]`: `[2, r, c]`."""
        return self._counts.take(self._places(rows[:, None], columns), axis=1)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted keys `smaller << 32 | larger` of pairs whose first counter is not zero `[p]`, and
        counters `[p, 2]`."""
        places = np.flatnonzero(self._counts[0])
        counts = np.ascontiguousarray(self._counts[:, places].T)
        if len(self._keys):
            return self._keys[places], counts
        rows, columns = np.divmod(places, max(self._num_items, 1))
        return rows << 32 | columns, counts

    def _places(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        rows, columns = np.minimum(ones, others).astype(np.int64), np.maximum(ones, others)
        if not len(self._keys):
            return rows * self._num_items + columns
        # In order, they are looked up ten times faster.
        keys, inverse = np.unique(rows << 32 | columns, return_inverse=True)
        places = np.searchsorted(self._keys, keys)
        places[self._keys[places] != keys] = len(self._keys) - 1
        return places[inverse].reshape(rows.shape)


class ItemSums(NamedTuple):
    """Of items: users who acted on each, sums of squared differences, smoothed means `[n]`."""

    holders: np.ndarray
    squares: np.ndarray
    means: np.ndarray


def features(
    settings: StatisticsSettings,
    pairs: np.ndarray,
    items: ItemSums,
    window: ItemSums,
    values: np.ndarray,
    num_users: int,
    user_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What pairs of items say of items to a user.

    Args:
      settings: what the statistics count.
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
    if settings.at_least is None:
        # How much likelier than to others an item is to users who acted on each of the window.
        chance = items.holders[:, None] / num_users
        weight = NEIGHBOUR_SMOOTHING  # towards "no likelier"
        lift = (together + weight * chance) / (window.holders + weight) / chance
        # Summed in sorted order, so that the order of the window cannot change a digit.
        second = np.asarray([row.mean() for row in np.sort(lift, axis=1)])
    if settings.has_values:
        scale = np.sqrt(np.outer(items.squares, window.squares))
        similarity = products / (scale + SIMILARITY_SMOOTHING)
        # The 1 stands for an item valued just alike that the user gave its mean.
        above = similarity @ (values - window.means) / (np.abs(similarity).sum(axis=1) + 1.0)
        if settings.at_least is not None:
            alike = np.maximum(similarity, 0.0)
            liked = alike @ (values >= settings.at_least) + _OWN_WEIGHT * user_share
            second = liked / (alike.sum(axis=1) + _OWN_WEIGHT)
    return above, second


@dataclasses.dataclass(frozen=True)
class NeighbourQueries(MappedArrays):
    """Items that are asked about: groups of the fields `GROUP`; numbers of items; the users'
    windows, items and the values that they gave them, of the fields `WINDOW`.
    """

    groups: np.ndarray
    items: np.ndarray
    window: np.ndarray

    @classmethod
    def join(cls, folder: Path, pieces: Sequence[Path]) -> Self:
        """Puts what `save` wrote one after the other, in files of a new folder."""
        folder.mkdir()
        every = [cls.open(piece) for piece in pieces]
        whole = {}
        for name, kind in (("groups", GROUP), ("items", np.int32), ("window", WINDOW)):
            arrays = [np.zeros(0, kind), *(getattr(piece, name) for piece in every)]
            whole[name] = mapped_array(folder / f"{name}.npy", kind, (sum(map(len, arrays)),))
            np.concatenate(arrays, out=whole[name])
        owners = np.repeat(np.arange(len(every)), [len(piece.groups) for piece in every])
        for prefix, name in (("", "items"), ("window_", "window")):
            before = sums_before(np.asarray([len(getattr(piece, name)) for piece in every], int))
            for end in ("low", "high"):
                whole["groups"][prefix + end] += before[owners]
        return cls.open(folder)


class NeighbourCounts:
    """Counts pairs along the timeline, from the entries of windows, and answers what is asked on
    the way.

    `item_number` numbers items as they came first `[items]`. Of an update, `past` are the
    `PairCounts.to_arrays` of the first `num_events` events. `pairs` are the counts.
    """

    def __init__(
        self,
        timeline: Timeline,
        entries: WindowEntries,
        item_number: np.ndarray,
        settings: StatisticsSettings,
        past: tuple[np.ndarray, np.ndarray] | None = None,
        num_events: int = 0,
    ) -> None:
        self._timeline, self._entries, self._settings = timeline, entries, settings
        self._item_number, self._num_events = item_number, num_events
        # As wide as the places that are looked up, or numpy would widen all of them each time.
        self._places = entries.place[entries.by_place].astype(np.int64)
        num_items = len(item_number)
        keys, counts = past or ((), None)
        others = _of_one_user(entries) if num_items > DENSE_ITEMS else ()
        self.pairs = PairCounts(num_items, keys, counts, others)
        self._count, self._holders = np.zeros((2, num_items), np.int64)
        self._total, self._square = np.zeros((2, num_items))
        self._num_users = self._place = self._num_entries = 0

    def answer(self, queries: NeighbourQueries, groups: np.ndarray) -> Iterator[np.ndarray]:
        """Yields for each of some groups, in the order of places, what `features` says of its
        items, NaN where nothing is known `[2, items]`.
        """
        for group in groups:
            place, user_share, low, high, window_low, window_high = group.tolist()
            self.advance(place)
            items, window = queries.items[low:high], queries.window[window_low:window_high]
            answers, there = np.full((2, len(items)), np.nan), self._holders[items] > 0
            if len(window) and there.any():
                answers[:, there] = features(
                    self._settings,
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
        entries, end = self._entries, int(np.searchsorted(self._places, place))
        while (start := self._num_entries) < end:
            # As many as have about so many pairs, but one at least.
            some = entries.by_place[start : min(end, start + _EVENTS_AT_ONCE)]
            lengths = np.cumsum(some - entries.low[some])
            some = some[: max(1, int(np.searchsorted(lengths, _PAIRS_AT_ONCE)))]
            self._count_pairs(some)
            self._num_entries += len(some)
        timeline = self._timeline
        for start in range(self._place, place, _EVENTS_AT_ONCE):
            places = slice(start, min(start + _EVENTS_AT_ONCE, place))
            counted = timeline.counted[places]
            items = self._item_number[timeline.item[places][counted]]
            np.add.at(self._count, items, 1)
            np.add.at(self._total, items, timeline.value[places][counted])
        self._place = place

    def _sums(self, items: np.ndarray) -> ItemSums:
        mean = self._timeline.total[self._place] / self._timeline.count[self._place]
        means = self._settings.smoothed(self._total[items], self._count[items], mean)
        return ItemSums(self._holders[items], self._square[items], means)

    def _count_pairs(self, entering: np.ndarray) -> None:
        """Counts entries, by their numbers, with all that the windows of their users hold."""
        entries = self._entries
        items, differences = entries.item[entering], entries.difference[entering]
        low = entries.low[entering]
        lengths = entering - low
        self._num_users += int(np.count_nonzero(lengths == 0))
        lengths[entries.place[entering] < self._num_events] = 0
        ends = np.cumsum(lengths)
        if ends[-1]:
            others = np.arange(ends[-1])
            others += np.repeat(low - ends + lengths, lengths)
            products = np.repeat(differences, lengths)
            products *= entries.difference[others]
            self.pairs.add(np.repeat(items, lengths), entries.item[others], products)
        np.add.at(self._holders, items, 1)
        np.add.at(self._square, items, differences * differences)


def _of_one_user(entries: WindowEntries) -> np.ndarray:
    """Keys of the pairs of items that one user acted on."""
    there = np.ones(len(entries.user), bool)
    acted = sparse.csr_array((there, (entries.user, entries.item)))
    pairs = sparse.triu(acted.T @ acted, 1)
    return pairs.row.astype(np.int64) << 32 | pairs.col
