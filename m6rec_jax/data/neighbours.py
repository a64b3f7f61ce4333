"""What pairs of items say about a user and an item: items valued alike, items acted on together.

Pairs join users, so that they alone of all statistics are counted by one process, event by event:
`NeighbourFold` keeps what they need and nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from m6rec_jax.data.pair_counts import PairCounts
from m6rec_jax.data.statistics_state import StatisticsOptions
from m6rec_jax.data.timeline import Timeline

# The weight of the user's share of all items beside those that are valued alike: a tie-break, an
# item of a similarity of 0.1 weighs as much.
_OWN_WEIGHT = 0.1
_EVENTS_AT_ONCE = 100_000


def differences(
    products: np.ndarray,
    square: np.ndarray,
    window_square: np.ndarray,
    above_mean: np.ndarray,
    smoothing: float,
) -> tuple[np.ndarray, np.ndarray]:
    """By how much a user will value items above their means.

    Args:
      products: of the pairs of items asked about and items of the user's window `[asked, window]`.
      square, window_square: of the values of these items `[asked]`, `[window]`.
      above_mean: by how much the user valued the window's items above their means `[window]`.
      smoothing: of similarities.

    Returns:
      the differences `[asked]`, and how alike the items are `[asked, window]`.
    """
    scale = np.sqrt(np.outer(square, window_square))
    alike = products / (scale + smoothing)
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
    found: np.ndarray = (nearer @ liked + _OWN_WEIGHT * own) / (nearer.sum(axis=1) + _OWN_WEIGHT)
    return found


def times_likelier(
    together: np.ndarray,
    holders: np.ndarray,
    window_holders: np.ndarray,
    num_users: int,
    smoothing: float,
) -> np.ndarray:
    """How much likelier items are made by what the user acted on `[asked]`.

    Args:
      together: users who acted on both `[asked, window]`.
      holders, window_holders: users who acted on each `[asked]`, `[window]`.
      num_users: all of them.
      smoothing: towards "no likelier", in users.
    """
    own = holders[:, None] / num_users
    times = (together + smoothing * own) / (window_holders[None, :] + smoothing) / own
    # Summed in sorted order, so that the order of the window cannot change a digit.
    return np.asarray([row.mean() for row in np.sort(times, axis=1)])


@dataclasses.dataclass(frozen=True)
class Asked:
    """Items that are asked about, by group. All groups of one place follow each other.

    Attributes:
      place: in the timeline, ascending `[groups]`.
      user: index in the users table `[groups]`.
      ahead: whether events that count for the user only are known `[groups]` bool.
      own: the user's share of liked items `[groups]`.
      offsets: of each group's items in `items` `[groups + 1]`.
      items: indices in the items table `[items]`.
    """

    place: np.ndarray
    user: np.ndarray
    ahead: np.ndarray
    own: np.ndarray
    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def merged(cls, several: Sequence[Asked]) -> tuple[Asked, list[np.ndarray]]:
        """All groups in the order of places, and where the items of each of `several` went."""
        ints = np.zeros(0, np.int64)
        place = np.concatenate([ints, *(one.place for one in several)])
        order = np.argsort(place, kind="stable")
        lengths = np.concatenate([ints, *(np.diff(one.offsets) for one in several)])
        first = (np.cumsum(lengths) - lengths)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths[order])])
        # Of each item in the new order, its number in the old one.
        source = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths[order])
        number = np.empty(len(source), np.int64)
        number[source] = np.arange(len(source))
        ends = np.cumsum([len(one.items) for one in several])
        found = cls(
            place[order],
            np.concatenate([ints, *(one.user for one in several)])[order],
            np.concatenate([np.zeros(0, bool), *(one.ahead for one in several)])[order],
            np.concatenate([np.zeros(0), *(one.own for one in several)])[order],
            offsets,
            np.concatenate([ints, *(one.items for one in several)])[source],
        )
        return found, np.split(number, ends[:-1]) if several else []


class _Window:
    """A user's last distinct items, oldest first, in arrays that grow."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: np.ndarray = np.zeros(16, np.int64)
        self._numbers: np.ndarray = np.zeros((2, 16))
        self._low = self._high = 0
        self.held: set[int] = set()

    def __len__(self) -> int:
        return self._high - self._low

    @property
    def items(self) -> np.ndarray:
        return self._items[self._low : self._high]

    @property
    def values(self) -> np.ndarray:
        return self._numbers[0, self._low : self._high]

    @property
    def differences(self) -> np.ndarray:
        return self._numbers[1, self._low : self._high]

    def copy(self) -> _Window:
        other = _Window(self._limit)
        other._items, other._numbers = self._items.copy(), self._numbers.copy()
        other._low, other._high, other.held = self._low, self._high, set(self.held)
        return other

    def remember(self, item: int, value: float, difference: float) -> None:
        if self._high == len(self._items):
            self._items = np.concatenate([self.items, np.zeros(max(16, len(self)), np.int64)])
            numbers = self._numbers[:, self._low : self._high]
            room = len(self._items) - len(self)
            self._low, self._high = 0, len(self)
            self._numbers = np.concatenate([numbers, np.zeros((2, room))], axis=1)
        self._items[self._high] = item
        self._numbers[:, self._high] = value, difference
        self._high += 1
        self.held.add(item)
        if len(self) > self._limit:
            self.held.discard(int(self._items[self._low]))
            self._low += 1


class NeighbourFold:
    """Counts pairs along the timeline and answers what is asked on the way.

    Args:
      timeline: of all users.
      num_items: of the items table.
      options: of the statistics.
      has_values: whether events have values.
      at_least: events with at least this value are positive; None where all are.

    Attributes:
      pairs: the counts, by indices of the items table.
      holders, square: see `ItemStates`, by indices of the items table `[items]`.
    """

    def __init__(
        self,
        timeline: Timeline,
        num_items: int,
        options: StatisticsOptions,
        has_values: bool,
        at_least: float | None,
    ) -> None:
        self._timeline, self._options = timeline, options
        self._has_values, self._at_least = has_values, at_least
        self._first = timeline.first_place(np.arange(num_items))
        self._count, self._total = np.zeros(num_items, np.int64), np.zeros(num_items)
        self.holders, self.square = np.zeros(num_items, np.int64), np.zeros(num_items)
        self.pairs = PairCounts(options.dense_items)
        self._windows: dict[int, _Window] = {}
        self._ahead: dict[int, _Window] = {}
        self._events = self._read()
        self._place = 0

    def answer(self, asked: Asked, bar) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
        """What pairs say of all items asked about; then takes in the events that remain.

        Returns:
          with values: `user_taste_difference`, the share of `user_neighbours_percent`; without:
          `user_neighbours_times`, and nothing. Each `[items]`, NaN where nothing is known.
        """
        found = np.full((2, len(asked.items)), np.nan)
        columns = (asked.place, asked.user, asked.ahead, asked.own)
        offsets = asked.offsets.tolist()
        for group, (place, user, ahead, own) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            self._advance(place)
            window = self._windows.get(user)
            if ahead:
                window = self._ahead.get(user, window)
            if window:
                numbers = slice(offsets[group], offsets[group + 1])
                items = asked.items[numbers]
                known = self._first[items] < place
                if known.any():
                    features = self._features(items[known], window, own, place)
                    for answers, feature in zip(found, features, strict=True):
                        answers[numbers][known] = feature
            bar.update()
        self._advance(len(self._timeline.time))
        return found[0], found[1]

    def _features(
        self, items: np.ndarray, window: _Window, own: float, place: int
    ) -> Sequence[np.ndarray | float]:
        options, others = self._options, window.items
        together, products = self.pairs.get(items, others)
        if not self._has_values:
            num_users = len(self._windows)
            weight = options.neighbour_smoothing
            holders = self.holders
            times = times_likelier(together, holders[items], holders[others], num_users, weight)
            return times, np.nan
        mean = self._timeline.total[place] / self._timeline.count[place]
        means = (self._total[others] + options.smoothing * mean) / (
            self._count[others] + options.smoothing
        )
        above, alike = differences(
            products,
            self.square[items],
            self.square[others],
            window.values - means,
            options.similarity_smoothing,
        )
        if self._at_least is None:
            return above, np.nan
        return above, shares(alike, window.values >= self._at_least, own)

    def _advance(self, place: int) -> None:
        for event in itertools.islice(self._events, max(0, place - self._place)):
            self._update(*event)
        self._place = max(place, self._place)

    def _read(self) -> Iterator[tuple[int, int, int, float, float, bool]]:
        """The arguments of `_update` of all events."""
        timeline = self._timeline
        for start in range(0, len(timeline.time), _EVENTS_AT_ONCE):
            places = np.arange(start, min(start + _EVENTS_AT_ONCE, len(timeline.time)))
            values = timeline.value[places]
            columns = (
                places,
                timeline.user[places],
                timeline.item[places],
                values,
                values - timeline.mean(places),
                timeline.counted[places],
            )
            yield from zip(*(column.tolist() for column in columns), strict=True)

    def _update(
        self, place: int, user: int, item: int, value: float, difference: float, counted: bool
    ) -> None:
        limit = self._options.neighbour_window
        ahead = self._ahead.get(user)
        if not counted and ahead is None:
            known = self._windows.get(user)
            ahead = self._ahead[user] = _Window(limit) if known is None else known.copy()
        # An item of which nothing else is known resembles no other.
        if ahead is not None and self._first[item] < place and item not in ahead.held:
            ahead.remember(item, value, difference)
        if not counted:
            return
        self._count[item] += 1
        self._total[item] += value
        window = self._windows.get(user)
        if window is None:
            window = self._windows[user] = _Window(limit)
        if item in window.held:
            return
        if len(window):
            amounts = np.ones((len(window), 2))
            amounts[:, 1] = difference * window.differences
            self.pairs.add_with_all(item, window.items, amounts)
        window.remember(item, value, difference)
        self.holders[item] += 1
        self.square[item] += difference * difference
