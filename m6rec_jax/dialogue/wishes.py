"""What a user wishes for in a dialogue, and which items of the catalogue obey.

The state of a dialogue is a tuple of wishes. A later turn adds to them, or replaces those of the
same kind (another genre in place of the one before). Every wish is a mask over the catalogue; what
is recommended obeys all of them. Where nothing would be left, those that matter least are dropped,
and the reply says which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m6rec_jax.dialogue.attributes import ColumnValue, ItemAttributes
from m6rec_jax.dialogue.words import GroupWords
from m6rec_jax.metrics.phrases import phrase_key


@dataclass(frozen=True, slots=True)
class Wanted:
    """Items that have at least one of these values."""

    values: frozenset[ColumnValue]

    @property
    def columns(self) -> frozenset[str]:
        """Whose values they are."""
        return frozenset(column for column, _ in self.values)


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Items that have none of these values."""

    values: frozenset[ColumnValue]


@dataclass(frozen=True, slots=True)
class Years:
    """Items of the years from `since` to `until`, both included; None: without that bound. With
    `outside` those of other years.
    """

    since: int | None
    until: int | None
    outside: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Its first and last year, infinite where it has none."""
        since, until = self.since, self.until
        return -np.inf if since is None else since, np.inf if until is None else until


@dataclass(frozen=True, slots=True)
class ForGroup:
    """Items for somebody, such as children (`GroupWords`)."""

    name: str


@dataclass(frozen=True, slots=True)
class Like:
    """Items that share a value with one of these, one that not most items have."""

    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unseen:
    """Items that are not in the user's history."""


Wish = Wanted | Unwanted | Years | ForGroup | Like | Unseen
# What matters most has the least number, and is dropped last; of equals what was said last.
_IMPORTANCE = {Unseen: 0, ForGroup: 1, Unwanted: 2, Wanted: 3, Years: 3, Like: 4}


def updated(
    wishes: Sequence[Wish], turn: Sequence[Wish], adds: bool, withdrawn: Collection[str] = ()
) -> tuple[Wish, ...]:
    """The wishes after another turn, the latest first.

    Args:
      wishes: before it.
      turn: those of the turn.
      adds: whether they come beside those of the same kind, not in their place: items are then to
        be like any of those that were named, and years to be of both spans, or, where these have
        none in common, of either.
      withdrawn: names of groups for which nothing is wanted any more.
    """
    turn = [_widened(new, wishes) for new in turn] if adds else turn
    wanted = [new for new in turn if isinstance(new, Wanted)]
    columns = frozenset[str]().union(*(new.columns for new in wanted))
    liked = frozenset[ColumnValue]().union(*(new.values for new in wanted))
    refused = [new.values for new in turn if isinstance(new, Unwanted)]
    disliked = frozenset[ColumnValue]().union(*refused)

    def remains(old: Wish) -> Wish | None:
        match old:
            case Wanted():
                left = old.values - disliked
                return Wanted(left) if left and (adds or not old.columns & columns) else None
            case Unwanted():
                left = old.values - liked
                return Unwanted(left) if left else None
            case Years():
                spans = [new for new in turn if isinstance(new, Years)]
                return old if all(_go_together(old, new) for new in spans) else None
            case ForGroup(name):
                return None if name in withdrawn else old
            case Like():
                return None if any(isinstance(new, Like) for new in turn) else old
        return old

    kept: list[Wish] = [left for old in wishes if (left := remains(old)) is not None]
    # "Before 1990", "also after 1995": any year is fine.
    return tuple(wish for wish in dict.fromkeys([*turn, *kept]) if wish != Years(None, None))


def _widened(new: Wish, wishes: Sequence[Wish]) -> Wish:
    """What is said with "also", together with earlier wishes of its kind."""
    for old in wishes:
        if isinstance(new, Like) and isinstance(old, Like):
            new = Like(tuple(dict.fromkeys((*old.places, *new.places))))
        elif isinstance(new, Years) and isinstance(old, Years) and not (new.outside or old.outside):
            lows = sorted((old, new), key=lambda span: span.bounds[0])
            highs = sorted((old, new), key=lambda span: span.bounds[1])
            # "Before 2000", "also newer than 1990": what both have, if that is any year.
            common = lows[1].bounds[0] <= highs[0].bounds[1]
            new = Years(lows[common].since, highs[not common].until)
    return new


def _go_together(old: Years, new: Years) -> bool:
    """Whether an earlier wish holds beside a later one: "after 1980", "but not from the 90s"."""
    if old.outside == new.outside:
        return old.outside
    wanted, refused = (new, old) if old.outside else (old, new)
    (since, until), (low, high) = wanted.bounds, refused.bounds
    return since < low or high < until


class Obeying(NamedTuple):
    """Which items may be recommended.

    Attributes:
      allowed: bool `[items]`.
      kept: the wishes that all of them obey.
      dropped: those that would have left nothing.
    """

    allowed: np.ndarray
    kept: tuple[Wish, ...]
    dropped: tuple[Wish, ...]


class WishFilter:
    """Finds the items that obey.

    Args:
      attributes: of the catalogue.
      groups: by name.
    """

    def __init__(self, attributes: ItemAttributes, groups: dict[str, GroupWords]) -> None:
        self._attributes, self._groups = attributes, groups

    def obeying(
        self, wishes: Sequence[Wish], excluded: Collection[int], seen: Collection[int] = ()
    ) -> Obeying:
        """The items that obey as many wishes as leave something, the most important ones first.

        Args:
          wishes: of the dialogue, the latest first.
          excluded: places of items that are not recommended in any case.
          seen: of those in the user's history.
        """
        allowed = self._none_of(excluded)
        kept: list[Wish] = []
        dropped: list[Wish] = []
        for wish in sorted(wishes, key=lambda wish: _IMPORTANCE[type(wish)]):
            left = allowed & self.mask(wish, seen)
            if left.any():
                allowed = left
            (kept if left.any() else dropped).append(wish)
        return Obeying(allowed, tuple(kept), tuple(dropped))

    def mask(self, wish: Wish, seen: Collection[int] = ()) -> np.ndarray:
        """Which items obey a wish, bool `[items]`; `seen` are those of the user's history."""
        attributes = self._attributes
        match wish:
            case Wanted(values):
                return attributes.has(values)
            case Unwanted(values):
                return ~attributes.has(values)
            case Years():
                # What is not known obeys neither.
                since, until = wish.bounds
                inside = (attributes.years >= since) & (attributes.years <= until)
                return (~np.isnan(attributes.years) & ~inside) if wish.outside else inside
            case ForGroup(name):
                wanted, unwanted = self.group_values(name)
                return attributes.has(wanted) & ~attributes.has(unwanted)
            case Like():
                return attributes.has(self.shared_values(wish))
            case Unseen():
                return self._none_of(seen)

    def _none_of(self, places: Collection[int]) -> np.ndarray:
        mask = np.ones(len(self._attributes.years), bool)
        mask[list(places)] = False
        return mask

    def group_values(self, name: str) -> tuple[frozenset[ColumnValue], frozenset[ColumnValue]]:
        """What items for a group have, and what they lack."""
        group = self._groups[name]
        return column_values(group.wanted), column_values(group.unwanted)

    def shared_values(self, like: Like) -> frozenset[ColumnValue]:
        """Values by which items are like others: those that most items have say nothing."""
        every = frozenset[ColumnValue]().union(*map(self._attributes.values_of, like.places))
        most = len(self._attributes.years) / 2
        return frozenset(value for value in every if self._attributes.count(value) <= most)


def column_values(named: Mapping[str, Iterable[str]]) -> frozenset[ColumnValue]:
    """The values of settings that name them by column."""
    return frozenset((column, phrase_key(v)) for column, values in named.items() for v in values)
