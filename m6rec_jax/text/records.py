"""What a recommender knows: users, items and events, before any of it becomes text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# A value of an attribute or statistic. None, NaN, "" and () all mean "not known": the template
# leaves out what depends on it.
Value = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class User:
    """One user. Ids identify rows; they never reach the text (paper, section 2: no ids, only text).

    Attributes:
      id: the id in the users table.
      attributes: what the profile template may name, such as {"age": 24, "occupation": "writer"}.
    """

    id: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One item that can be recommended.

    Attributes:
      id: the id in the items table.
      attributes: what item templates may name, such as {"title": "Fargo", "genres": ("crime",)}.
    """

    id: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did with an item.

    Attributes:
      user_id: who.
      item_id: with what.
      time: when, in unix seconds (UTC).
      value: how strongly, such as a rating; None where the event has no degree (a click).
    """

    user_id: str
    item_id: str
    time: float
    value: float | None = None
