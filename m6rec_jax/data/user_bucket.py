"""Everything about the events of some users, as arrays: groups, histories, counts, windows.

A bucket holds all events of its users in each user's order (time, then row of the table).
*Positions* count events of the bucket. The *past* holds the positions that rows may know of: first
those that training rows see, by user, then those that rows of other parts see, if they see others.
What a row knows of its user is a range of the past.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from m6rec_jax.data.features import Counts
from m6rec_jax.data.grouping import Grouping
from m6rec_jax.data.splits import STATISTICS_PARTS, TRAIN
from m6rec_jax.data.timeline import Timeline, running_sums


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


class UserBucket:
    """Events of some users, and what each moment may know of them.

    Args:
      events: row, user, item, time, value (NaN for none), part; in the order of user, time, row.
      timeline: of all users.
      visible_parts: part of a row -> parts whose events its history may hold.
      at_least: events with at least this value are positive; None where all are.
      window: how many of a user's last distinct items are remembered.

    Attributes:
      user, item, time, value, part: of each event `[events]`.
      moment: position of the first event of the same user and time `[events]`.
      moment_end: position after the last one `[events]`.
      place: place of the event in the timeline, if it is there `[events]`.
      users: the users, ascending; `user_start` `[users + 1]` says where their events begin.
      past: see the module `[past]`; `past_start` `[past]` says where the user's own begins in it.
      of_training: of the past, what a training row after all events would know `[users]`.
    """

    def __init__(
        self,
        events: pa.Table,
        timeline: Timeline,
        visible_parts: Mapping[int, tuple[int, ...]],
        at_least: float | None,
        window: int,
    ) -> None:
        self.timeline, self.window = timeline, window
        self._groups: dict[Grouping, Groups] = {}
        self._visible_parts = visible_parts
        self.user, self.item, self.time, self.value, self.part = (
            events.column(name).to_numpy() for name in ("user", "item", "time", "value", "part")
        )
        size = len(self.user)
        self.users, first = np.unique(self.user, return_index=True)
        self.user_start = np.append(first, size)
        self._start = np.repeat(first, np.diff(self.user_start))
        changes = np.append(True, (np.diff(self.time) != 0) | (np.diff(self.user) != 0))
        begins = np.flatnonzero(changes)
        lengths = np.diff(np.append(begins, size))
        self.moment = np.repeat(begins, lengths)
        self.moment_end = np.repeat(begins + lengths, lengths)
        self.place = timeline.place_of_row[events.column("row").to_numpy()]
        self.worth = np.nan_to_num(self.value)
        self.liked = np.ones(size, bool) if at_least is None else self.value >= at_least
        seen = list(dict.fromkeys([visible_parts[TRAIN], *visible_parts.values()]))
        self._seeing = np.asarray(
            [seen.index(visible_parts[part]) for part in sorted(visible_parts)]
        )
        number, position = np.nonzero([np.isin(self.part, parts) for parts in seen])
        self.past = position
        # How many of the past, for each of `seen`, lie before each position `[seen, events + 1]`.
        before = np.arange(size + 1) + (size + 1) * np.arange(len(seen))[:, None]
        self._before = np.searchsorted((size + 1) * number + position, before)
        self.past_start = self._before[number, self._start[position]]
        self.of_training = Ranges(*(self._before[0, ends] for ends in (first, self.user_start[1:])))

    # ---- groups and histories

    def groups(self, grouping: Grouping) -> Groups:
        """The rows of a view, grouped."""
        if grouping not in self._groups:
            groups = self._grouped(grouping)
            if grouping.with_seen and grouping.strict:
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
            own = set(self.item[first[group] : end[group]].tolist())
            start = first[group]
            moment = set(self.item[self.moment[start] : self.moment_end[start]].tolist())
            kept[group] = not own <= of_user <= own | moment
        return groups.take(kept)

    def _grouped(self, grouping: Grouping) -> Groups:
        wanted = np.isin(self.part, grouping.parts)
        changes = np.append(True, (np.diff(self.part) != 0) | (np.diff(self.user) != 0))
        if not grouping.repeats:
            new = np.zeros(len(self.part), bool)
            pairs = _pairs(self._start, self.item)
            for part, visible in self._visible_parts.items():
                known = np.flatnonzero(np.isin(self.part, (*visible, part)))
                first = known[_is_first(pairs[known])]
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
            self._before[self._seeing[part], position]
            for position in (self._start[first], self.moment[first], first)
        )
        return Groups(
            rows=Ranges(first, end),
            part=part,
            place=self.timeline.place_of(self.time[first]),
            history=Ranges(low, before if grouping.strict else at_once),
            known=Ranges(low, before),
        )

    def histories(self, groups: Groups, max_events: int) -> Ranges:
        """Of the past, the latest events that the histories of groups hold."""
        low, high = groups.history.low, groups.history.high
        return Ranges(np.maximum(low, high - max_events), high)

    def seen(self, known: Ranges) -> tuple[np.ndarray, Ranges]:
        """The distinct items in ranges of the past, each from its user's first event on.

        Returns:
          positions of their first events, and each one's range among them.
        """
        first = np.flatnonzero(_is_first(self._past_pairs))
        ends = (np.searchsorted(first, end) for end in (known.low, known.high))
        return self.past[first], Ranges(*ends)

    @cached_property
    def _past_pairs(self) -> np.ndarray:
        """A number for the user and the item of each event of the past, by who sees it."""
        return _pairs(self.past_start, self.item[self.past])

    # ---- statistics of users

    def counts(self, known: Ranges) -> Counts:
        """What was counted in ranges of the past, each from its user's first event on."""
        liked, total = self._sums
        count = known.lengths
        positive = liked[known.high] - liked[known.low]
        return Counts(count, positive, np.where(count > 0, total[known.high - 1], 0.0))

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Positive events before each of the past, and sums of the user's values up to each."""
        starts = np.append(np.unique(self.past_start), len(self.past))
        total = running_sums(self.worth[self.past], starts)
        return _before(self.liked[self.past]), np.append(total, 0.0)

    def times_had(self, known: Ranges, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often users had items, and when last. All `[n]`.

        Args:
          known: of the past, what is known of the users.
          items: indices in the items table.

        Returns:
          the times, and the position of the last one (of any event where there is none).
        """
        if not len(self.past):
            return np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
        order = np.argsort(self._past_pairs, kind="stable")
        # Numbers of pairs instead of pairs, for which there would be no room beside the past.
        pairs, first, lengths = np.unique(
            self._past_pairs[order], return_index=True, return_counts=True
        )
        width = len(self.past) + 1
        number = np.repeat(np.arange(len(pairs)), lengths)
        pair = _pairs(known.low, items)
        place = np.minimum(np.searchsorted(pairs, pair), len(pairs) - 1)
        end = np.searchsorted(number * width + order, place * width + known.high)
        times = np.where(pairs[place] == pair, end - first[place], 0)
        return times, self.past[order[np.maximum(end - 1, 0)]]

    # ---- windows

    def windows(self, known: Ranges) -> tuple[np.ndarray, Ranges]:
        """The users' last distinct items as of each range of the past.

        Returns:
          positions of their first events, and each one's range among them.
        """
        low, high = (np.searchsorted(self.entries, end) for end in (known.low, known.high))
        return self.past[self.entries], Ranges(np.maximum(low, high - self.window), high)

    @cached_property
    def entries(self) -> np.ndarray:
        """Which events of the past enter their user's window, ascending.

        From a user's first event on that counts for the user only, an item that was not counted
        before resembles no other, and does not enter.
        """
        before = _before(~np.isin(self.part[self.past], STATISTICS_PARTS))
        later = before[1:] > before[self.past_start]
        unknown = self.timeline.first_place(self.item[self.past]) >= self.place[self.past]
        known = np.flatnonzero(~(later & unknown))
        enters = _is_first(self._past_pairs[known])
        starts = np.searchsorted(known, np.append(np.unique(self.past_start), len(self.past)))
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if end - start > self.window:  # what was forgotten may enter again
                items = self.item[self.past[known[start:end]]]
                enters[start:end] = _enters(items.tolist(), self.window)
        return known[enters]


def _pairs(starts: np.ndarray, items: np.ndarray) -> np.ndarray:
    """A number for each pair of a user, by where its events begin, and an item `[n]`."""
    return starts.astype(np.int64) << 32 | items


def _is_first(keys: np.ndarray) -> np.ndarray:
    """Which of the keys `[n]` are the first of their value `[n]` bool."""
    found = np.zeros(len(keys), bool)
    found[np.unique(keys, return_index=True)[1]] = True
    return found


def _enters(items: Sequence[int], window: int) -> list[bool]:
    """Which of a user's items are not among the `window` last ones that entered."""
    held: dict[int, None] = {}
    found = []
    for item in items:
        found.append(item not in held)
        if found[-1]:
            held[item] = None
            if len(held) > window:
                del held[next(iter(held))]
    return found


def _before(mask: np.ndarray) -> np.ndarray:
    """How many are true before each, and in all `[n + 1]`."""
    return np.concatenate([[0], np.cumsum(mask)])
