"""What a recommender knows: users, items and events, before any of it becomes text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# A value of an attribute or statistic. None, NaN, "" and () all mean "not known": the template
# leaves out what depends on it.
Value = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class User:
    """One user. Its id never reaches the text (paper, section 2: no ids, only text)."""

    id: str
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One item that can be recommended; item templates name its attributes.

    Attributes:
      title: what a person calls it; empty where that is not known.
    """

    id: str
    attributes: Mapping[str, Value] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did with an item.

    Attributes:
      user_id, item_id: who, and with what.
      time: unix seconds (UTC); NaN where a request does not say.
      value: how strongly, such as a rating; None where the event has no degree (a click).
    """

    user_id: str
    item_id: str
    time: float
    value: float | None = None
