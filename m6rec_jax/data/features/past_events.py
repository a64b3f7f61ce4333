"""What users did, as arrays: counts, repeats, values of items and windows at any moment.

Events are at *positions*. The *past* holds the positions that a moment may know of, user by user,
in each user's order; what a moment knows of its user is a range of the past.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Item


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Consecutive numbers, some for each of `n`: from `low` to below `high` `[n]`."""

    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Ranges:
        return Ranges(self.low[chosen], self.high[chosen])

    @property
    def lengths(self) -> np.ndarray:
        """How many numbers each has `[n]`."""
        return self.high - self.low

    @property
    def offsets(self) -> np.ndarray:
        """Where each begins in `numbers` `[n + 1]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def owners(self) -> np.ndarray:
        """Of which of the `n` each number is."""
        return np.repeat(np.arange(len(self.low)), self.lengths)

    @property
    def numbers(self) -> np.ndarray:
        """All numbers, one range after the other."""
        return np.arange(self.lengths.sum()) + np.repeat(self.low - self.offsets[:-1], self.lengths)


class Counts(NamedTuple):
    """Number of events, of positive ones, and sum of their values. All `[n]`."""

    events: np.ndarray
    positive: np.ndarray
    value: np.ndarray


class ItemValues(NamedTuple):
    """The values of one column of all items, numbered.

    Attributes:
      names: of the numbers.
      offsets: of each item's values in `numbers` `[items + 1]`.
      numbers: distinct within an item.
    """

    names: Sequence[str]
    offsets: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Item], field: str) -> ItemValues:
        """Reads a column of `statistics.by`."""
        codes: dict[str, int] = {}
        values = [
            [codes.setdefault(name, len(codes)) for name in values_of(item, field)]
            for item in items
        ]
        offsets = np.cumsum([0, *map(len, values)])
        numbers = np.asarray([n for numbers in values for n in numbers], np.int64)
        return cls(list(codes), offsets, numbers)

    def ranges(self, items: np.ndarray) -> Ranges:
        """Where in `numbers` the values of items `[n]` are."""
        return Ranges(self.offsets[items], self.offsets[items + 1])

    @property
    def owners(self) -> np.ndarray:
        """Of which item each of `numbers` is."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, items: np.ndarray) -> ItemValues:
        """The values of some items."""
        ranges = self.ranges(items)
        return ItemValues(self.names, ranges.offsets, self.numbers[ranges.numbers])


def values_of(item: Item, field: str) -> tuple[str, ...]:
    """The distinct values an item has in a column, as text."""
    value = item.attributes.get(field)
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(value))
    text = text_of(value)
    return (text,) if text else ()


class PastEvents:
    """See the module.

    Args:
      item, time, value, liked: of each event, a missing value is NaN `[events]`.
      past: positions of the events that may be known.
      past_start: where in the past the user's events begin `[past]`.
      window: how many of a user's last distinct items are remembered.

    Attributes:
      worth: the value, 0 where it is missing `[events]`.
    """

    def __init__(
        self,
        item: np.ndarray,
        time: np.ndarray,
        value: np.ndarray,
        liked: np.ndarray,
        past: np.ndarray,
        past_start: np.ndarray,
        window: int,
    ) -> None:
        self.item, self.time, self.value, self.liked = item, time, value, liked
        self.past, self.past_start, self.window = past, past_start, window
        self.worth = np.nan_to_num(value)

    def counts(self, known: Ranges) -> Counts:
        """What was counted in ranges of the past, each from its user's first event on."""
        liked, total = self._sums
        count = known.lengths
        positive = liked[known.high] - liked[known.low]
        return Counts(count, positive, np.where(count > 0, total[known.high - 1], 0.0))

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Positive events before each of the past, and sums of the user's values up to each."""
        total = running_sums(self.worth[self.past], self._user_starts)
        return count_before(self.liked[self.past]), np.append(total, 0.0)

    @property
    def _user_starts(self) -> np.ndarray:
        return np.append(np.unique(self.past_start), len(self.past))

    def times_had(self, known: Ranges, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often users had items, and when last (at any time where never). All `[n]`."""
        events = np.arange(len(self.past))
        low, high, order = self._met(events, self.item[self.past], known, items)
        last = np.append(self.time[self.past[order]], 0.0)[high - 1]
        return high - low, last

    def values_met(
        self, values: ItemValues, known: Ranges, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Events with items that have values, and positive ones among them. All `[n]`.

        Args:
          values: of one column.
          known: of the past, what is known of the users.
          numbers: of the values.
        """
        ranges = values.ranges(self.item[self.past])
        events = ranges.owners
        low, high, order = self._met(events, values.numbers[ranges.numbers], known, numbers)
        liked = count_before(self.liked[self.past[events[order]]])
        return high - low, liked[high] - liked[low]

    def _met(
        self, events: np.ndarray, labels: np.ndarray, known: Ranges, sought: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds labels of events (of the past, ascending) among what is known of users `[n]`.

        Returns:
          where those equal to `sought` begin and end `[n]` in an order of events, and the order.
        """
        size = max(labels.max(initial=0), sought.max(initial=0)) + 1
        width = len(self.past) + 1
        # By user, label and place in the past, in this order.
        keys = (self.past_start[events] * size + labels) * width + events
        order = np.argsort(keys)
        start = (known.low * size + sought) * width
        low, high = (np.searchsorted(keys[order], start + end) for end in (0, known.high))
        return low, high, order

    def seen(self, known: Ranges) -> tuple[np.ndarray, Ranges]:
        """The distinct items in ranges of the past, each from its user's first event on.

        Returns:
          positions of their first events, and each one's range among them.
        """
        first = np.flatnonzero(is_first(self._past_pairs))
        ends = (np.searchsorted(first, end) for end in (known.low, known.high))
        return self.past[first], Ranges(*ends)

    def windows(self, known: Ranges) -> tuple[np.ndarray, Ranges]:
        """The users' last distinct items as of each range of the past.

        Returns:
          positions of their first events, and each one's range among them.
        """
        low, high = (np.searchsorted(self.entries, end) for end in (known.low, known.high))
        return self.past[self.entries], Ranges(np.maximum(low, high - self.window), high)

    @cached_property
    def entries(self) -> np.ndarray:
        """Which events of the past enter their user's window, ascending."""
        known = np.flatnonzero(self.may_enter())
        enters = is_first(self._past_pairs[known])
        starts = np.searchsorted(known, self._user_starts)
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if end - start > self.window:  # what was forgotten may enter again
                items = self.item[self.past[known[start:end]]]
                enters[start:end] = _enters(items.tolist(), self.window)
        return known[enters]

    def may_enter(self) -> np.ndarray:
        """Which events of the past have items that can resemble others `[past]` bool."""
        return np.ones(len(self.past), bool)

    @cached_property
    def _past_pairs(self) -> np.ndarray:
        """A number for the user and the item of each event of the past."""
        return _pairs(self.past_start, self.item[self.past])


def _pairs(starts: np.ndarray, items: np.ndarray) -> np.ndarray:
    return starts.astype(np.int64) << 32 | items


def is_first(keys: np.ndarray) -> np.ndarray:
    """Which of the keys `[n]` are the first of their value `[n]` bool."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _enters(items: Sequence[int], window: int) -> list[bool]:
    """Which of a user's items are not among the `window` last ones that entered."""
    inside: dict[int, None] = {}
    enters = []
    for item in items:
        enters.append(item not in inside)
        inside.setdefault(item)
        if len(inside) > window:
            del inside[next(iter(inside))]
    return enters


def count_before(mask: np.ndarray) -> np.ndarray:
    """How many are true before each, and in all `[n + 1]`."""
    return np.concatenate([[0], np.cumsum(mask)])


def running_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of `values` `[n]` up to each, itself included, within segments.

    Made one by one, in order: another order would round otherwise, and change a word.

    Args:
      values: of all segments, one after the other.
      starts: first of each segment, and `n` `[segments + 1]`.
    """
    sums = np.empty(len(values))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if start < end:
            np.add.accumulate(values[start:end], out=sums[start:end])
    return sums
