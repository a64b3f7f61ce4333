"""Everything about the events of some users, as arrays: groups, histories, counts, windows.

A bucket holds all events of its users in each user's order (time, then row of the table).
*Positions* count events of the bucket. What `grouping.groups_of_user` and `StatisticsState.update`
do event by event is done here for all groups at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from m6rec_jax.data.grouping import Grouping
from m6rec_jax.data.splits import STATISTICS_PARTS
from m6rec_jax.data.timeline import Timeline, parts_of_users, running_sums


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Consecutive numbers, some for each of `n`: from `low` to below `high` `[n]`."""

    low: np.ndarray
    high: np.ndarray

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
      cut: position before which the history ends.
      known: position before which events are in the statistics of the user.
      place: place in the timeline that the statistics stand at.
      ahead: whether statistics of the user hold events that count for the user only.
    """

    rows: Ranges
    part: np.ndarray
    cut: np.ndarray
    known: np.ndarray
    place: np.ndarray
    ahead: np.ndarray

    def __len__(self) -> int:
        return len(self.part)

    def take(self, chosen: np.ndarray) -> Groups:
        """Some of them, by their numbers or a mask."""
        columns = {f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)[1:]}
        return Groups(Ranges(self.rows.low[chosen], self.rows.high[chosen]), **columns)


@dataclasses.dataclass(frozen=True)
class UserCounts:
    """What is known of the user of each group, or of other things asked about. All `[n]`."""

    count: np.ndarray
    positive: np.ndarray
    total: np.ndarray


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
      start: position of the first event of the event's user `[events]`.
      moment: position of the first event of the same user and time `[events]`.
      moment_end: position after the last one `[events]`.
      place: place of the event in the timeline, if it is there `[events]`.
      users: the users, ascending; `user_start` `[users + 1]` says where their events begin.
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
        self.start = np.repeat(first, np.diff(self.user_start))
        changes = np.append(True, (np.diff(self.time) != 0) | (np.diff(self.user) != 0))
        begins = np.flatnonzero(changes)
        lengths = np.diff(np.append(begins, size))
        self.moment = np.repeat(begins, lengths)
        self.moment_end = np.repeat(begins + lengths, lengths)
        self.place = timeline.place_of_row[events.column("row").to_numpy()]
        self.worth = np.nan_to_num(self.value)
        self.liked = np.ones(size, bool) if at_least is None else self.value >= at_least
        self.counted = np.isin(self.part, STATISTICS_PARTS)
        self.of_user = self.counted | np.isin(self.part, parts_of_users(visible_parts))

    # ---- groups and histories

    def groups(self, grouping: Grouping) -> Groups:
        """The rows of a view, grouped: see `grouping.groups_of_user`."""
        if grouping not in self._groups:
            groups = self._grouped(grouping)
            if grouping.with_seen and grouping.strict:
                groups = self._with_others(groups)
            self._groups[grouping] = groups
        return self._groups[grouping]

    def _with_others(self, groups: Groups) -> Groups:
        """Without those that only repeat, with nothing else that the user had to stand beside."""
        items, had = self.seen(groups)
        first, end = groups.rows.low, groups.rows.high
        number = had.high - had.low
        last = np.maximum(end, self.moment_end[first])
        kept = np.ones(len(groups), bool)
        for group in np.flatnonzero((number > 0) & (number <= last - self.moment[first])).tolist():
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
            for part, visible in self._visible_parts.items():
                known = np.flatnonzero(np.isin(self.part, (*visible, part)))
                first = known[self._first_of_item(known)]
                new[first[self.part[first] == part]] = True
            wanted &= new
            changes[1:] |= np.diff(new)
        run = np.flatnonzero(changes)
        within = np.arange(len(self.part)) - np.repeat(run, np.diff(np.append(run, len(self.part))))
        first = np.flatnonzero(changes | (within % grouping.size == 0))
        end = np.append(first[1:], len(self.part))
        first, end = first[wanted[first]], end[wanted[first]]
        part = self.part[first]
        seen = self._visible_parts.items()
        ahead = [part for part, parts in seen if set(parts).difference(STATISTICS_PARTS)]
        known = self.moment[first]
        return Groups(
            rows=Ranges(first, end),
            part=part,
            cut=known if grouping.strict else first,
            known=known,
            place=self.timeline.place_of(self.time[first]),
            ahead=np.isin(part, ahead),
        )

    def histories(self, groups: Groups, max_events: int) -> tuple[np.ndarray, Ranges]:
        """Visible events before each group: positions, and each group's range among them."""
        positions = np.zeros(0, np.int64)
        low, high = np.zeros(len(groups), np.int64), np.zeros(len(groups), np.int64)
        for visible, mask in self._by_visible(groups):
            last = len(positions) + np.searchsorted(visible, groups.cut[mask])
            first = len(positions) + np.searchsorted(visible, self.start[groups.rows.low[mask]])
            low[mask], high[mask] = np.maximum(first, last - max_events), last
            positions = np.concatenate([positions, visible])
        return positions, Ranges(low, high)

    def seen(self, groups: Groups) -> tuple[np.ndarray, Ranges]:
        """Items of all visible events before the histories' ends, each once, and ranges among them.

        In the order in which they came first.
        """
        items = np.zeros(0, np.int64)
        low, high = np.zeros(len(groups), np.int64), np.zeros(len(groups), np.int64)
        first = groups.rows.low
        for visible, mask in self._by_visible(groups):
            visible = visible[self._first_of_item(visible)]
            low[mask] = len(items) + np.searchsorted(visible, self.start[first[mask]])
            high[mask] = len(items) + np.searchsorted(visible, groups.cut[mask])
            items = np.concatenate([items, self.item[visible]])
        return items, Ranges(low, high)

    def _by_visible(self, groups: Groups) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions that groups may see, and which groups `[groups]` bool; parts alike together."""
        parts: dict[tuple[int, ...], list[int]] = {}
        for part, visible in self._visible_parts.items():
            parts.setdefault(tuple(visible), []).append(part)
        return [
            (np.flatnonzero(np.isin(self.part, visible)), np.isin(groups.part, seeing))
            for visible, seeing in parts.items()
        ]

    def _first_of_item(self, positions: np.ndarray) -> np.ndarray:
        """Which of the positions `[n]`, ascending, are the first of their user and item."""
        found = np.zeros(len(positions), bool)
        found[np.unique(self._pairs[positions], return_index=True)[1]] = True
        return found

    @cached_property
    def _pairs(self) -> np.ndarray:
        """A number for the user and the item of each event `[events]`."""
        return self.start.astype(np.int64) << 32 | self.item

    # ---- statistics of users

    def counts(self, groups: Groups) -> UserCounts:
        """What was counted of each group's user."""
        first = self.start[groups.rows.low]
        found = UserCounts(*(np.zeros(len(groups), kind) for kind in (np.int64, np.int64, float)))
        for ahead, (before, liked, total) in self._sums.items():
            chosen = groups.ahead == ahead
            known, start = groups.known[chosen], first[chosen]
            found.count[chosen] = before[known] - before[start]
            found.positive[chosen] = liked[known] - liked[start]
            if len(total):
                # Sums of one user each: that before `known`, if it holds an event.
                last = total[np.maximum(before[known] - 1, 0)]
                found.total[chosen] = np.where(found.count[chosen] > 0, last, 0.0)
        return found

    @cached_property
    def _sums(self) -> dict[bool, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """With events that count for the user only, or without: what `counts` looks up."""
        found = {}
        for ahead, mask in ((False, self.counted), (True, self.of_user)):
            starts = np.searchsorted(np.flatnonzero(mask), self.user_start)
            found[ahead] = (
                _before(mask),
                _before(mask & self.liked),
                running_sums(self.worth[mask], starts),
            )
        return found

    def times_had(
        self, groups: Groups, owners: np.ndarray, items: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How often users had items, and when last. All `[n]`.

        Args:
          groups: whose users are asked about.
          owners: of which group each item is.
          items: indices in the items table.

        Returns:
          the times, and the position of the last one (of any event where there is none).
        """
        times, last = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
        width = len(self.item) + 1
        pair = self.start[groups.rows.low][owners] << 32 | items
        for ahead, mask in ((False, self.counted), (True, self.of_user)):
            events = np.flatnonzero(mask)
            events = events[np.lexsort((events, self._pairs[events]))]
            chosen = groups.ahead[owners] == ahead
            if not len(events):
                continue
            # Numbers of pairs instead of pairs, for which there would be no room beside positions.
            pairs, first = np.unique(self._pairs[events], return_index=True)
            number = np.repeat(np.arange(len(pairs)), np.diff(np.append(first, len(events))))
            asked = np.minimum(np.searchsorted(pairs, pair[chosen]), len(pairs) - 1)
            known = groups.known[owners[chosen]]
            end = np.searchsorted(number * width + events, asked * width + known)
            there = pairs[asked] == pair[chosen]
            times[chosen] = np.where(there, end - first[asked], 0)
            last[chosen] = events[np.maximum(end - 1, 0)]
        return times, last

    # ---- windows

    def windows(self, groups: Groups) -> tuple[np.ndarray, Ranges]:
        """The user's last distinct items as of each group: positions of their first events."""
        positions = np.zeros(0, np.int64)
        low, high = np.zeros(len(groups), np.int64), np.zeros(len(groups), np.int64)
        for ahead, entries in enumerate((self.entries, self.entries_ahead)):
            mask = groups.ahead == bool(ahead)
            last = np.searchsorted(entries, groups.known[mask])
            first = np.searchsorted(entries, self.start[groups.rows.low[mask]])
            low[mask] = len(positions) + np.maximum(first, last - self.window)
            high[mask] = len(positions) + last
            positions = np.concatenate([positions, entries])
        return positions, Ranges(low, high)

    @cached_property
    def entries(self) -> np.ndarray:
        """Positions of the counted events whose item enters its user's window, ascending."""
        return self._entering(np.flatnonzero(self.counted))

    @cached_property
    def entries_ahead(self) -> np.ndarray:
        """As `entries`, where events that count for the user only are in, too.

        From a user's first one on, an item that was not counted before resembles no other, and
        does not enter.
        """
        of_user_only = self.of_user & ~self.counted
        later = _before(of_user_only)[1:] > _before(of_user_only)[self.start]
        unknown = later & (self.timeline.first_place(self.item) >= self.place)
        return self._entering(np.flatnonzero(self.of_user & ~unknown))

    def _entering(self, positions: np.ndarray) -> np.ndarray:
        """Of positions, ascending, those whose item is not in the user's window yet."""
        enters = self._first_of_item(positions)
        starts = np.searchsorted(positions, self.user_start)
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if end - start > self.window:  # what was forgotten may enter again
                enters[start:end] = _enters(self.item[positions[start:end]].tolist(), self.window)
        return positions[enters]


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
