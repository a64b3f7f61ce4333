"""Everything about the events of some users, as arrays: groups, and what each knows of its user.

A bucket holds all events of its users in each user's order (time, then row of the table). Its past
(see `past_events`) has first what training rows see, by user, then what rows of other parts see, if
they see others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from m6rec_jax.data.features.past_events import PastEvents, Ranges, count_before, is_first
from m6rec_jax.data.rendering.grouping import Grouping
from m6rec_jax.data.splitting.splits import STATISTICS_PARTS, TRAIN
from m6rec_jax.data.splitting.timeline import Timeline


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


class UserBucket(PastEvents):
    """Events of some users, and what each moment may know of them.

    Args:
      events: row, user, item, time, value (NaN for none), part; in the order of user, time, row.
      timeline: of all users.
      visible_parts: part of a row -> parts whose events its history may hold.
      at_least: events with at least this value are positive; None where all are.
      window: how many of a user's last distinct items are remembered.

    Attributes:
      row, user, part: of each event `[events]`.
      moment: position of the first event of the same user and time `[events]`.
      moment_end: position after the last one `[events]`.
      place: place of the event in the timeline, if it is there `[events]`.
      users: the users, ascending `[users]`.
    """

    def __init__(
        self,
        events: pa.Table,
        timeline: Timeline,
        visible_parts: Mapping[int, tuple[int, ...]],
        at_least: float | None,
        window: int,
    ) -> None:
        self.timeline = timeline
        self._groups: dict[Grouping, Groups] = {}
        self._visible_parts = visible_parts
        self.row, self.user, item, time, value, self.part = (
            events.column(name).to_numpy()
            for name in ("row", "user", "item", "time", "value", "part")
        )
        size = len(self.user)
        self.users, first = np.unique(self.user, return_index=True)
        self._start = np.repeat(first, np.diff(np.append(first, size)))
        begins = np.flatnonzero(np.append(True, (np.diff(time) != 0) | (np.diff(self.user) != 0)))
        lengths = np.diff(np.append(begins, size))
        self.moment = np.repeat(begins, lengths)
        self.moment_end = np.repeat(begins + lengths, lengths)
        self.place = timeline.place_of_row[self.row]
        sets = list(dict.fromkeys([visible_parts[TRAIN], *visible_parts.values()]))
        self._set_of_part = np.asarray(
            [sets.index(visible_parts[p]) for p in sorted(visible_parts)]
        )
        number, past = np.nonzero([np.isin(self.part, parts) for parts in sets])
        # How many of the past, for each of the sets, lie before each position `[sets, events + 1]`.
        before = np.arange(size + 1) + (size + 1) * np.arange(len(sets))[:, None]
        self._before = np.searchsorted((size + 1) * number + past, before)
        liked = np.ones(size, bool) if at_least is None else value >= at_least
        start = self._before[number, self._start[past]]
        super().__init__(item, time, value, liked, past, start, window)

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
            start = first[group]
            of_group = set(self.item[start : end[group]].tolist())
            moment = set(self.item[self.moment[start] : self.moment_end[start]].tolist())
            kept[group] = not of_group <= of_user <= of_group | moment
        return groups.take(kept)

    def _grouped(self, grouping: Grouping) -> Groups:
        wanted = np.isin(self.part, grouping.parts)
        changes = np.append(True, (np.diff(self.part) != 0) | (np.diff(self.user) != 0))
        if not grouping.repeats:
            new = np.zeros(len(self.part), bool)
            pairs = self._start.astype(np.int64) << 32 | self.item
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

    def histories(self, groups: Groups, max_events: int) -> Ranges:
        """Of the past, the latest events that the histories of groups hold."""
        low, high = groups.history.low, groups.history.high
        return Ranges(np.maximum(low, high - max_events), high)

    def may_enter(self) -> np.ndarray:
        """From a user's first event on that counts for the user only, an item that was not counted
        before resembles no other.
        """
        before = count_before(~np.isin(self.part[self.past], STATISTICS_PARTS))
        later = before[1:] > before[self.past_start]
        new = self.timeline.first_place(self.item[self.past]) >= self.place[self.past]
        return ~(later & new)

    def places_of_entries(self) -> np.ndarray:
        """Places of the counted events that entered their user's window, user by user."""
        of_training = self.entries[self.entries < self._before[0, -1]]
        return self.place[self.past[of_training]]
