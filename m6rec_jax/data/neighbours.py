"""What pairs of items say about a user and an item: items valued alike, items acted on together.

Pairs join users, so that they are counted over the events of all of them, in the order of time.
Counting is cheap where nobody asks on the way: a process answers what is asked in one stretch of
the timeline, and before that counts the pairs of all that went before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np

from m6rec_jax.data.epochs import PastCounts, WindowEntries
from m6rec_jax.data.pair_counts import PairCounts
from m6rec_jax.data.statistics_state import (
    NEIGHBOUR_SMOOTHING,
    SIMILARITY_SMOOTHING,
    StatisticsSettings,
)
from m6rec_jax.data.timeline import Timeline
from m6rec_jax.io.mapped_arrays import open_arrays

# The weight of the user's share of all items beside those that are valued alike: a tie-break, an
# item of a similarity of 0.1 weighs as much.
_OWN_WEIGHT = 0.1
# Bounds on memory: pairs that are counted together, about 100 bytes each, and events.
_PAIRS_AT_ONCE = 500_000
_EVENTS_AT_ONCE = 100_000


# Of a group: its place in the timeline, the user's share of liked items, and where its items and
# the user's window are.
GROUP = np.dtype(
    [
        ("place", np.int64),
        ("own", np.float64),
        ("low", np.int64),
        ("high", np.int64),
        ("window_low", np.int64),
        ("window_high", np.int64),
    ]
)
WINDOW = np.dtype([("item", np.int32), ("value", np.float64)])


def differences(
    products: np.ndarray,
    square: np.ndarray,
    window_square: np.ndarray,
    above_mean: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """By how much a user will value items above their means.

    Args:
      products: of the pairs of items asked about and items of the user's window `[asked, window]`.
      square, window_square: of the values of these items `[asked]`, `[window]`.
      above_mean: by how much the user valued the window's items above their means `[window]`.

    Returns:
      the differences `[asked]`, and how alike the items are `[asked, window]`.
    """
    scale = np.sqrt(np.outer(square, window_square))
    alike = products / (scale + SIMILARITY_SMOOTHING)
    # The 1 stands for an item valued just alike that the user gave its mean.
    return alike @ above_mean / (np.abs(alike).sum(axis=1) + 1.0), alike


def shares(alike: np.ndarray, liked: np.ndarray, own: float) -> np.ndarray:
    """The share of items valued alike that a user liked `[asked]`.

    Args:
      alike: of `differences`.
      liked: which of the window's items the user liked `[window]` bool.
      own: the user's share of all items.
    """
    nearer = np.maximum(alike, 0.0)
    return (nearer @ liked + _OWN_WEIGHT * own) / (nearer.sum(axis=1) + _OWN_WEIGHT)


def times_likelier(
    together: np.ndarray,
    holders: np.ndarray,
    window_holders: np.ndarray,
    num_users: int,
) -> np.ndarray:
    """How much likelier items are made by what the user acted on `[asked]`.

    Args:
      together: users who acted on both `[asked, window]`.
      holders, window_holders: users who acted on each `[asked]`, `[window]`.
      num_users: all of them.
    """
    own = holders[:, None] / num_users
    weight = NEIGHBOUR_SMOOTHING  # towards "no likelier"
    times = (together + weight * own) / (window_holders[None, :] + weight) / own
    # Summed in sorted order, so that the order of the window cannot change a digit.
    return np.asarray([row.mean() for row in np.sort(times, axis=1)])


class ItemSums(Protocol):
    """What is known of items, by their numbers `[n]`."""

    def holders(self, items: np.ndarray) -> np.ndarray:
        """How many users acted on each."""

    def squares(self, items: np.ndarray) -> np.ndarray:
        """Sums of squared differences."""

    def means(self, items: np.ndarray) -> np.ndarray:
        """Smoothed mean values."""


def features(
    counted: StatisticsSettings,
    pairs: PairCounts,
    items: np.ndarray,
    window: np.ndarray,
    values: np.ndarray,
    sums: ItemSums,
    num_users: int,
    own: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What pairs of items say of items to a user, all by their numbers.

    Args:
      counted: what the statistics count.
      pairs: the counts.
      items: that are asked about `[asked]`.
      window, values: items of the user's window, and the values that it gave them `[window]`.
      sums: what is known of items.
      num_users: all of them.
      own: the user's share of liked items.

    Returns:
      `user_taste_difference`; and the share of `user_neighbours_percent`, or where every event is
      positive `user_neighbours_times`. NaN where there is no such feature.
    """
    together, products = pairs.get(items, window)
    above = second = np.full(len(items), np.nan)
    if counted.at_least is None:
        second = times_likelier(together, sums.holders(items), sums.holders(window), num_users)
    if counted.has_values:
        above, alike = differences(
            products,
            sums.squares(items),
            sums.squares(window),
            values - sums.means(window),
        )
        if counted.at_least is not None:
            second = shares(alike, values >= counted.at_least, own)
    return above, second


class Asked(NamedTuple):
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
        return cls(*open_arrays(folder, cls._fields))

    @classmethod
    def write(cls, folder: Path, pieces: Iterable[Asked]) -> list[slice]:
        """Puts pieces down, one after the other; returns where the items of each are."""
        folder.mkdir()
        ends = [0]
        num_windows = 0
        paths = {name: folder / f"{name}.raw" for name in cls._fields}
        kinds = {}
        nothing = cls(np.empty(0, GROUP), np.empty(0, np.int32), np.empty(0, WINDOW))
        for piece in itertools.chain([nothing], pieces):
            groups = piece.groups.copy()
            for name, shift in (("low", ends[-1]), ("window_low", num_windows)):
                groups[name] += shift
                groups[name.replace("low", "high")] += shift
            ends.append(ends[-1] + len(piece.items))
            num_windows += len(piece.window)
            for name, array in zip(cls._fields, (groups, *piece[1:]), strict=True):
                kinds[name] = array.dtype
                with paths[name].open("ab") as file:
                    array.tofile(file)
        for name, kind in kinds.items():
            # An empty file cannot be mapped.
            some = paths[name].stat().st_size
            whole = np.memmap(paths[name], kind, "r") if some else np.empty(0, kind)
            np.save(folder / f"{name}.npy", whole)
            paths[name].unlink()
        return [slice(*pair) for pair in itertools.pairwise(ends[1:])]


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
        self.pairs = PairCounts(counted.options.dense_items)
        self._first_place = 0  # of the events whose pairs are not counted yet
        if past is not None:
            self.pairs.load(*past.pairs)
            self._first_place = past.num_events
        num_items = len(item_number)
        self._first = np.sort(timeline.first_place(np.arange(num_items)))
        self._count, self._total = np.zeros(num_items, np.int64), np.zeros(num_items)
        self._holders, self._square = np.zeros(num_items, np.int64), np.zeros(num_items)
        self._num_users = self._place = self._num_entries = 0

    def answer(self, asked: Asked, order: Sequence[int]) -> Iterator[np.ndarray]:
        """What pairs say of all items of groups.

        Args:
          asked: of all groups.
          order: numbers of the groups that are answered, in the order of places.

        Yields:
          for each group what `features` says of its items, NaN where nothing is known `[2, items]`.
        """
        for group in asked.groups[order]:
            place, own, low, high, window_low, window_high = group.tolist()
            self.advance(place)
            items = asked.items[low:high]
            found = np.full((2, len(items)), np.nan)
            known = self._first[items] < place
            if window_low < window_high and known.any():
                window = asked.window[window_low:window_high]
                found[:, known] = features(
                    self._counted,
                    self.pairs,
                    items[known],
                    window["item"],
                    window["value"],
                    self,
                    self._num_users,
                    own,
                )
            yield found

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

    def holders(self, items: np.ndarray) -> np.ndarray:
        return self._holders[items]

    def squares(self, items: np.ndarray) -> np.ndarray:
        return self._square[items]

    def means(self, items: np.ndarray) -> np.ndarray:
        mean = self._timeline.total[self._place] / self._timeline.count[self._place]
        return self._counted.smoothed(self._total[items], self._count[items], mean)

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
            held = np.arange(ends[-1])
            held += np.repeat(low - ends + lengths, lengths)
            products = np.repeat(differences, lengths)
            products *= entries.difference[held]
            self.pairs.add_symmetric(np.repeat(items, lengths), entries.item[held], products)
        np.add.at(self._holders, items, 1)
        np.add.at(self._square, items, differences * differences)

    def _count_items(self, places: slice) -> None:
        timeline = self._timeline
        counted = timeline.counted[places]
        items = self._item_number[timeline.item[places][counted]]
        np.add.at(self._count, items, 1)
        np.add.at(self._total, items, timeline.value[places][counted])
