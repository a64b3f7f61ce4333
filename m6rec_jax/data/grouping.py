"""Groups: consecutive rows of one user, with the history they all share.

One encoding of the history then serves every candidate of the group. The price is that the history
ends before the group's first row, so `size` trades speed against freshness.

A *repeat* is an event with an item that its user had before, in a part that its history may hold or
in its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from m6rec_jax.data.splits import EXCLUDED, TEST, TRAIN, VALIDATION, VISIBLE_PARTS
from m6rec_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How rows are grouped.

    Attributes:
      size: rows per group, at most.
      max_events: events of history, at most; the latest ones.
      strict: history ends strictly before the *time* of the group's first row (scoring); otherwise
        before that row in the user's order, so that events of the same moment are in (retrieval).
      parts: parts whose rows are grouped.
      repeats: whether repeats are rows; otherwise they only are in histories, and separate groups.
      with_seen: keep all items the user acted on so far (for sampling negatives). Where `strict`,
        groups are left out that only repeat what the user had, and nothing else that the user had
        is left to stand beside.
    """

    size: int
    max_events: int
    strict: bool = True
    parts: tuple[int, ...] = (TRAIN, VALIDATION, TEST)
    repeats: bool = True
    with_seen: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or self.max_events < 0:
            raise ConfigError(
                f"a group needs at least one row and no negative number of events, not "
                f"size={self.size}, max_events={self.max_events}"
            )


@dataclasses.dataclass(frozen=True)
class UserEvents:
    """All events of one user in the user's order (time, then position in the file), each `[n]`."""

    user: int
    rows: np.ndarray
    items: np.ndarray
    times: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Rows of one user that share a history.

    Attributes:
      group_id: counted over all users, in the order of the users table and then the user's.
      part: part code of all its rows.
      user: index in the users table.
      time: of the first row, unix seconds; statistics hold events before it.
      items, values: of the rows (NaN for no value), in the user's order.
      history_items, history_times, history_values: visible events before, oldest first.
      seen: items of all visible events before the history's end, ascending; or nothing.
      moment: items of all events at the time of the first row, where `strict`; or nothing.
    """

    group_id: int
    part: int
    user: int
    time: float
    items: list[int]
    values: list[float]
    history_items: list[int]
    history_times: list[float]
    history_values: list[float]
    seen: list[int]
    moment: list[int]


def groups_of_user(
    events: UserEvents,
    codes: np.ndarray,
    grouping: Grouping,
    first_id: int = 0,
    visible_parts: Mapping[int, tuple[int, ...]] = VISIBLE_PARTS,
) -> Iterator[Group]:
    """Groups one user's rows.

    Rows of one part that follow each other directly in the user's order go together; excluded rows
    do not count, all others separate.

    Args:
      events: all events of the user, `[n]`.
      codes: their part codes `[n]`.
      grouping: how.
      first_id: id of the first group.
      visible_parts: part of a row -> parts whose events its history may hold.
    """
    known = codes != EXCLUDED
    times, values = events.times[known], events.values[known]
    items, codes = events.items[known], codes[known]
    rows = np.full(len(codes), grouping.repeats)
    for part in () if grouping.repeats else grouping.parts:
        known = np.flatnonzero(np.isin(codes, (*visible_parts[part], part)))
        first = known[np.unique(items[known], return_index=True)[1]]
        rows[first[codes[first] == part]] = True
    # Found once: a user whom many share, or a bot, has as many groups as events.
    visible = {part: np.flatnonzero(np.isin(codes, visible_parts[part])) for part in grouping.parts}
    seen = {
        part: _FirstSeen.of(items, positions) if grouping.with_seen else None
        for part, positions in visible.items()
    }
    start = 0
    while start < len(codes):
        part, time = int(codes[start]), float(times[start])
        if part not in grouping.parts or not rows[start]:
            start += 1
            continue
        end = start + 1
        while end < min(len(codes), start + grouping.size) and codes[end] == part and rows[end]:
            end += 1
        cut, of_part = start, seen[part]
        moment: list[int] = []
        if grouping.strict:
            cut = int(np.searchsorted(times, time, "left"))
            if of_part is not None:
                # What came at the same moment, as in one basket, is in no history, and no negative.
                moment = items[cut : int(np.searchsorted(times, time, "right"))].tolist()
        positions = visible[part]
        last = int(np.searchsorted(positions, cut, "left"))
        history = positions[max(0, last - grouping.max_events) : last]
        had = [] if of_part is None else of_part.before(cut)
        own = set(items[start:end].tolist())
        if grouping.strict and own <= set(had) <= own | set(moment):
            start = end
            continue
        yield Group(
            group_id=first_id,
            part=part,
            user=events.user,
            time=time,
            items=items[start:end].tolist(),
            values=values[start:end].tolist(),
            history_items=items[history].tolist(),
            history_times=times[history].tolist(),
            history_values=values[history].tolist(),
            seen=had,
            moment=moment,
        )
        first_id += 1
        start = end


@dataclasses.dataclass(frozen=True, slots=True)
class _FirstSeen:
    """A user's distinct items in the order in which they came, and where: `[distinct]`."""

    items: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, items: np.ndarray, positions: np.ndarray) -> _FirstSeen:
        """Args: the user's items `[n]`, and the positions of those that may be known."""
        distinct, first = np.unique(items[positions], return_index=True)
        order = np.argsort(first)
        return cls(distinct[order], positions[first[order]])

    def before(self, cut: int) -> list[int]:
        """Items that came before a position, in ascending order."""
        return np.sort(self.items[: np.searchsorted(self.positions, cut, "left")]).tolist()
