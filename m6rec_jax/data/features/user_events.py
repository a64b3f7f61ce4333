"""Events of users as arrays: their groups, and what a moment may know of its user.

Events are at *positions*. The *past* holds the positions that moments may know of, user by user, in
each user's order (time, then row of the table); what a moment knows of its user is a range of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from m6rec_jax.data.features.timeline import Counts, Timeline, running_sums, sums_before
from m6rec_jax.data.splitting.splits import STATISTICS_PARTS, TEST, TRAIN, VALIDATION
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Item


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How consecutive rows of one user become groups, with the history they all share.

    One encoding of the history then serves every candidate of the group. The price is that the
    history ends before the group's first row, so `size` trades speed against freshness. A *repeat*
    is an event with an item that its user had before, in a part that its history may hold or in its
    own.

    Attributes:
      size: rows per group, at most.
      max_events: events of history, at most; the latest ones.
      strict: history ends strictly before the *time* of the group's first row (scoring); otherwise
        before that row in the user's order, so that events of the same moment are in (retrieval).
      repeats: whether repeats are rows; otherwise they only are in histories, and separate groups.
      with_seen: negatives are sampled. Groups are left out that only repeat what the user had, and
        nothing else that the user had is left to stand beside.
    """

    size: int
    max_events: int
    strict: bool = True
    repeats: bool = True
    with_seen: bool = False


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Consecutive numbers, some for each of `n`: from `low` to below `high` `[n]`."""

    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Ranges:
        return Ranges(self.low[chosen], self.high[chosen])

    def last(self, most: int) -> Ranges:
        """At most so many numbers of each, the last ones."""
        return Ranges(np.maximum(self.low, self.high - most), self.high)

    @property
    def lengths(self) -> np.ndarray:
        """How many numbers each has `[n]`."""
        return self.high - self.low

    @property
    def offsets(self) -> np.ndarray:
        """Where each begins in `numbers` `[n + 1]`."""
        return np.append(0, np.cumsum(self.lengths))

    @property
    def owners(self) -> np.ndarray:
        """Of which of the `n` each number is."""
        return np.repeat(np.arange(len(self.low)), self.lengths)

    @property
    def numbers(self) -> np.ndarray:
        """All numbers, one range after the other."""
        return np.arange(self.lengths.sum()) + np.repeat(self.low - self.offsets[:-1], self.lengths)


class ItemValues(NamedTuple):
    """The values of one column of all items, numbered: names of the numbers; of each item's values
    in `numbers` the `offsets` `[items + 1]`; the numbers, distinct within an item.
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


def values_of(item: Item, field: str) -> tuple[str, ...]:
    """The distinct values an item has in a column, as text."""
    value = item.attributes.get(field)
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(value))
    text = text_of(value)
    return (text,) if text else ()


class UserEvents:
    """What moments know of users.

    Args:
      item, time, value, liked: of each event, a missing value is NaN (in `worth` 0) `[events]`.
      past: positions of the events that may be known.
      past_start: where in the past the user's events begin `[past]`.
    """

    def __init__(
        self,
        item: np.ndarray,
        time: np.ndarray,
        value: np.ndarray,
        liked: np.ndarray,
        past: np.ndarray,
        past_start: np.ndarray,
    ) -> None:
        self.item, self.time, self.value, self.liked = item, time, value, liked
        self.past, self.past_start = past, past_start
        self.worth = np.nan_to_num(value)

    def counts(self, known: Ranges) -> Counts:
        """What was counted in ranges of the past, each from its user's first event on."""
        liked, total = self._sums
        value = np.where(known.lengths > 0, total[known.high], 0.0)
        return Counts(known.lengths, liked[known.high] - liked[known.low], value)

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Positive events of the past before each place in it, and sums of one user's values."""
        starts = np.append(np.unique(self.past_start), len(self.past))
        total = running_sums(self.worth[self.past], starts)
        return sums_before(self.liked[self.past]), np.append(0.0, total)

    def times_had(self, known: Ranges, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often users had items, and when last (at any time where never). All `[n]`."""
        events = np.arange(len(self.past))
        low, high, order = self._met(events, self.item[self.past], known, items)
        last = np.append(self.time[self.past[order]], 0.0)[high - 1]
        return high - low, last

    def values_met(
        self, values: ItemValues, known: Ranges, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Events with items that have the values `numbers` of one column, and positive ones among
        them, in what is `known` of users. All `[n]`.
        """
        ranges = values.ranges(self.item[self.past])
        events = ranges.owners
        low, high, order = self._met(events, values.numbers[ranges.numbers], known, numbers)
        liked = sums_before(self.liked[self.past[events[order]]])
        return high - low, liked[high] - liked[low]

    def _met(
        self, events: np.ndarray, labels: np.ndarray, known: Ranges, sought: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds labels of events (of the past, ascending) among what is known of users `[n]`: where
        those equal to `sought` begin and end `[n]` in an order of events, and the order.
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
        """The distinct items in ranges of the past, each from its user's first event on: positions
        of their first events, and each one's range among them.
        """
        first = np.flatnonzero(is_first(self._pairs))
        return self.past[first], _within(first, known)

    def windows(self, known: Ranges, most: int) -> tuple[np.ndarray, Ranges]:
        """As `seen`, the last `most` items that may resemble others."""
        return self.past[self.entries], _within(self.entries, known).last(most)

    @cached_property
    def entries(self) -> np.ndarray:
        """Which events of the past are their user's first with an item that may resemble others."""
        events = np.flatnonzero(self.may_resemble())
        return events[is_first(self._pairs[events])]

    def may_resemble(self) -> np.ndarray:
        """Which events of the past have items that can resemble others `[past]` bool."""
        return np.ones(len(self.past), bool)

    @cached_property
    def _pairs(self) -> np.ndarray:
        return _numbered(self.past_start, self.item[self.past])


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups of a view, by user, then in the user's order. All `[groups]`.

    Attributes:
      rows: positions of each group's rows.
      part: part code of the rows.
      place: place in the timeline that the statistics stand at.
      history: of the past, the events that the history may hold.
      known: of the past, the events in the statistics of the user.
    """

    rows: Ranges
    part: np.ndarray
    place: np.ndarray
    history: Ranges
    known: Ranges

    def __len__(self) -> int:
        return len(self.part)

    def take(self, chosen: np.ndarray) -> Groups:
        """Some of them, by their numbers or a mask."""
        return Groups(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


class ShardEvents(UserEvents):
    """All events of some users in each user's order.

    The past has first what training rows see, by user, then what rows of other parts see, if they
    see others.

    Args:
      events: row, user, item, time, value (NaN for none), part; in the order of user, time, row.
      timeline: of all users.
      visible_parts: part of a row -> parts whose events its history may hold.
      at_least: events with at least this value are positive; None where all are.

    Attributes:
      row, user, part: of each event `[events]`.
      moment: position of the first event of the same user and time `[events]`.
      moment_end: position after the last one `[events]`.
    """

    def __init__(
        self,
        events: pa.Table,
        timeline: Timeline,
        visible_parts: Mapping[int, tuple[int, ...]],
        at_least: float | None,
    ) -> None:
        self.timeline = timeline
        self._groups: dict[Grouping, Groups] = {}
        self._visible_parts = visible_parts
        self.row, self.user, item, time, value, self.part = (
            events.column(name).to_numpy()
            for name in ("row", "user", "item", "time", "value", "part")
        )
        size = len(self.user)
        self._start = np.searchsorted(self.user, self.user)
        begins = np.flatnonzero(np.append(True, (np.diff(time) != 0) | (np.diff(self.user) != 0)))
        lengths = np.diff(np.append(begins, size))
        self.moment = np.repeat(begins, lengths)
        self.moment_end = np.repeat(begins + lengths, lengths)
        sets = list(dict.fromkeys([visible_parts[TRAIN], *visible_parts.values()]))
        self._set_of_part = np.asarray(
            [sets.index(visible_parts[p]) for p in sorted(visible_parts)]
        )
        number, past = np.nonzero([np.isin(self.part, parts) for parts in sets])
        # How many of the past, for each of the sets, lie before each position `[sets, events + 1]`.
        before = np.arange(size + 1) + (size + 1) * np.arange(len(sets))[:, None]
        self._before = np.searchsorted((size + 1) * number + past, before)
        liked = np.ones(size, bool) if at_least is None else value >= at_least
        super().__init__(item, time, value, liked, past, self._before[number, self._start[past]])

    def groups(self, grouping: Grouping) -> Groups:
        """The rows of a view, grouped."""
        if grouping not in self._groups:
            groups = self._grouped(grouping)
            if grouping.with_seen:
                groups = self._with_others(groups)
            self._groups[grouping] = groups
        return self._groups[grouping]

    def _with_others(self, groups: Groups) -> Groups:
        """Without those that only repeat, with nothing else that the user had to stand beside."""
        positions, had = self.seen(groups.history)
        items = self.item[positions]
        first, end = groups.rows.low, groups.rows.high
        last = np.maximum(end, self.moment_end[first])
        kept = np.ones(len(groups), bool)
        few = (had.lengths > 0) & (had.lengths <= last - self.moment[first])
        for group in np.flatnonzero(few).tolist():
            of_user = set(items[had.low[group] : had.high[group]].tolist())
            start = first[group]
            of_group = set(self.item[start : end[group]].tolist())
            moment = set(self.item[self.moment[start] : self.moment_end[start]].tolist())
            kept[group] = not of_group <= of_user <= of_group | moment
        return groups.take(kept)

    def _grouped(self, grouping: Grouping) -> Groups:
        wanted = np.isin(self.part, (TRAIN, VALIDATION, TEST))
        changes = np.append(True, (np.diff(self.part) != 0) | (np.diff(self.user) != 0))
        if not grouping.repeats:
            new = np.zeros(len(self.part), bool)
            pairs = _numbered(self._start, self.item)
            for part, visible in self._visible_parts.items():
                seen = np.flatnonzero(np.isin(self.part, (*visible, part)))
                first = seen[is_first(pairs[seen])]
                new[first[self.part[first] == part]] = True
            wanted &= new
            changes[1:] |= np.diff(new)
        run = np.flatnonzero(changes)
        within = np.arange(len(self.part)) - np.repeat(run, np.diff(np.append(run, len(self.part))))
        first = np.flatnonzero(changes | (within % grouping.size == 0))
        end = np.append(first[1:], len(self.part))
        first, end = first[wanted[first]], end[wanted[first]]
        part = self.part[first]
        low, before, at_once = (
            self._before[self._set_of_part[part], position]
            for position in (self._start[first], self.moment[first], first)
        )
        return Groups(
            rows=Ranges(first, end),
            part=part,
            place=self.timeline.place_of(self.time[first]),
            history=Ranges(low, before if grouping.strict else at_once),
            known=Ranges(low, before),
        )

    def may_resemble(self) -> np.ndarray:
        """From a user's first event on that counts for the user only, an item that was not counted
        before resembles no other.
        """
        before = sums_before(~np.isin(self.part[self.past], STATISTICS_PARTS))
        later = before[1:] > before[self.past_start]
        first = self.timeline.first_place[self.item[self.past]]
        return ~later | (first < self._place(self.past))

    def places_of_entries(self) -> np.ndarray:
        """Places in the timeline of the entries of training, by user."""
        return self._place(self.past[self.entries[self.entries < self._before[0, -1]]])

    def _place(self, positions: np.ndarray) -> np.ndarray:
        return self.timeline.place_of_row[self.row[positions]]


def _within(numbers: np.ndarray, ranges: Ranges) -> Ranges:
    """Where in some of the numbers, ascending, the ranges lie."""
    low, high = (np.searchsorted(numbers, end) for end in (ranges.low, ranges.high))
    return Ranges(low, high)


def _numbered(starts: np.ndarray, items: np.ndarray) -> np.ndarray:
    """A number for the user, whose events begin there, and the item of each event."""
    return starts.astype(np.int64) << 32 | items


def is_first(keys: np.ndarray) -> np.ndarray:
    """Which of the keys `[n]` are the first of their value `[n]` bool."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first
