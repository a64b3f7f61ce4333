"""What a user wishes for in a dialogue, and which items of the catalogue obey.

The state of a dialogue is a tuple of wishes. A later turn adds to them, or replaces those of the
same kind (another genre in place of the one before). Every wish is a mask over the catalogue; what
is recommended obeys all of them. Where nothing would be left, those that matter least are dropped,
and the reply says which.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m6rec_jax.dialogue.catalogue import ColumnValue, DialogueCatalogue


@dataclass(frozen=True, slots=True)
class Values:
    """Items that have at least one of these values or, where they are refused, none of them."""

    values: frozenset[ColumnValue]
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Years:
    """Items of the years from `since` to `until`, both included; with `outside` of other years.

    An item whose year is not known obeys neither.
    """

    since: float = -math.inf
    until: float = math.inf
    outside: bool = False


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


Wish = Values | Years | ForGroup | Like | Unseen
# What matters most has the least number, and is dropped last; of equals what was said last.
_IMPORTANCE = {Unseen: 0, ForGroup: 1, Values: 3, Years: 3, Like: 4}


def values_of(wish: Wish, catalogue: DialogueCatalogue) -> frozenset[ColumnValue]:
    """The values of which obeying items have one; none where a wish is of something else."""
    match wish:
        case Values(values, False):
            return values
        case ForGroup(name):
            return catalogue.groups[name][0]
        case Like(places):
            return frozenset[ColumnValue]().union(*map(catalogue.telling_values, places))
    return frozenset()


def mask(wish: Wish, catalogue: DialogueCatalogue, seen: Collection[int] = ()) -> np.ndarray:
    """Which items obey a wish, bool `[items]`; `seen` are those of the user's history."""
    match wish:
        case Years(since, until, outside):
            inside = (catalogue.years >= since) & (catalogue.years <= until)
            return ~np.isnan(catalogue.years) & (inside != outside)
        case Unseen():
            return ~np.isin(np.arange(len(catalogue.years)), list(seen))
        case Values(values, True):
            return ~catalogue.has(values)
        case ForGroup(name):
            wanted, unwanted = map(catalogue.has, catalogue.groups[name])
            return wanted & ~unwanted
    return catalogue.has(values_of(wish, catalogue))


def columns_of(wish: Wish, catalogue: DialogueCatalogue) -> frozenset[str]:
    """The columns whose values a wish wants or refuses."""
    values: Iterable[ColumnValue] = ()
    match wish:
        case Values():
            values = wish.values
        case ForGroup(name):
            values = frozenset[ColumnValue]().union(*catalogue.groups[name])
    return frozenset(column for column, _ in values)


class Obeying(NamedTuple):
    """Which items may be recommended."""

    allowed: np.ndarray  # bool `[items]`
    kept: tuple[Wish, ...]  # that all of them obey
    dropped: tuple[Wish, ...]  # that would have left nothing


def obeying(
    catalogue: DialogueCatalogue,
    wishes: Sequence[Wish],
    excluded: Collection[int],
    seen: Collection[int] = (),
) -> Obeying:
    """The items that obey as many wishes as leave something, the most important ones first.

    `wishes` are the latest first; `excluded` items are never recommended, `seen` ones are in the
    user's history.
    """
    allowed = mask(Unseen(), catalogue, excluded)
    kept: list[Wish] = []
    dropped: list[Wish] = []
    # What is refused matters more than what is wanted.
    for wish in sorted(wishes, key=lambda w: _IMPORTANCE[type(w)] - getattr(w, "refused", False)):
        left = allowed & mask(wish, catalogue, seen)
        if left.any():
            allowed = left
        (kept if left.any() else dropped).append(wish)
    return Obeying(allowed, tuple(kept), tuple(dropped))


def updated(
    wishes: Sequence[Wish], turn: Sequence[Wish], adds: bool, withdrawn: Collection[str] = ()
) -> tuple[Wish, ...]:
    """The wishes after another turn, the latest first.

    Args:
      adds: whether they come beside those of the same kind, not in their place: items are then to
        be like any of those that were named, and years to be of both spans, or, where these have
        none in common, of either.
      withdrawn: names of groups for which nothing is wanted any more.
    """
    turn = [_widened(new, wishes) for new in turn] if adds else turn
    wanted = [wish.values for wish in turn if isinstance(wish, Values) and not wish.refused]
    columns = {column for values in wanted for column, _ in values}

    def holds(old: Wish) -> bool:
        match old:
            case Values(values, False):
                return adds or columns.isdisjoint(column for column, _ in values)
            case Years():
                return all(_go_together(old, new) for new in turn if isinstance(new, Years))
            case ForGroup(name):
                return name not in withdrawn
            case Like():
                return not any(isinstance(new, Like) for new in turn)
        return True

    left = last_word([*reversed(turn), *wishes])[len(turn) :]
    kept = [new for old, new in zip(wishes, left, strict=True) if new is not None and holds(old)]
    # "Before 1990", "also after 1995": any year is fine.
    return tuple(wish for wish in dict.fromkeys([*turn, *kept]) if wish != Years())


def last_word(wishes: Iterable[Wish]) -> list[Wish | None]:
    """What is left of wishes, the latest first, where what is said last holds: "a comedy, but no
    comedy". None where nothing is.
    """
    later: dict[bool, set[ColumnValue]] = {True: set(), False: set()}
    left: list[Wish | None] = []
    for wish in wishes:
        if isinstance(wish, Values):
            values = wish.values - later[not wish.refused]
            later[wish.refused] |= wish.values
            left.append(Values(values, wish.refused) if values else None)
        else:
            left.append(wish)
    return left


def _widened(new: Wish, wishes: Sequence[Wish]) -> Wish:
    """What is said with "also", together with earlier wishes of its kind."""
    for old in wishes:
        match old, new:
            case Like(), Like():
                new = Like(tuple(dict.fromkeys((*old.places, *new.places))))
            case Years(outside=False), Years(outside=False):
                lows, highs = sorted((old.since, new.since)), sorted((old.until, new.until))
                # "Before 2000", "also newer than 1990": what both have, if that is any year.
                common = lows[1] <= highs[0]
                new = Years(lows[common], highs[not common])
    return new


def _go_together(old: Years, new: Years) -> bool:
    """Whether an earlier wish holds beside a later one: "after 1980", "but not from the 90s"."""
    if old.outside == new.outside:
        return old.outside
    wanted, refused = (new, old) if old.outside else (old, new)
    return wanted.since < refused.since or refused.until < wanted.until
