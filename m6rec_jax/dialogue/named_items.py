"""Segments with the attributes of items that a dialogue has named, for a model to read.

    Fargo: crime, drama, by Joel Coen, Ethan Coen, 1996

A dialogue, the items that it mentions and their attributes, chosen by what is asked for, are a tree
(as in PCRS-TKA): where a genre or a person is asked for, these columns alone are told.
"""

from __future__ import annotations

from collections.abc import Sequence

from m6rec_jax.dialogue.attributes import ItemAttributes
from m6rec_jax.dialogue.wishes import ForGroup, Unwanted, Wanted, Wish
from m6rec_jax.dialogue.words import DialogueWords


class NamedItems:
    """Renders named items.

    Args:
      names: by which items are named, such as titles without a year.
      attributes: of the items.
      words: their columns are told in this order, each after its first cue, such as "by".
      number: of items, at most.

    Raises:
      ConfigError: the words are of no column.
    """

    def __init__(
        self, names: Sequence[str], attributes: ItemAttributes, words: DialogueWords, number: int
    ) -> None:
        words.check_attributes()
        self._names, self._attributes, self._number = names, attributes, number
        self._cues = {column: own.cues[:1] for column, own in words.of_attributes().items()}
        self._groups = {
            name: frozenset((*group.wanted, *group.unwanted))
            for name, group in words.of_groups().items()
        }

    def segments(self, places: Sequence[int], wishes: Sequence[Wish]) -> list[str]:
        """Of the latest items of which something is known, the latest last.

        Args:
          places: of items, in the order in which they were named.
          wishes: where some are of columns, these alone are told, and the year.
        """
        asked = frozenset[str]().union(*map(self._columns, wishes)) or frozenset(self._cues)
        found: list[str] = []
        for place in reversed(places):
            if len(found) < self._number and (told := self._told(place, asked)):
                found.append(told)
        return found[::-1]

    def _columns(self, wish: Wish) -> frozenset[str]:
        match wish:
            case Wanted(values) | Unwanted(values):
                return frozenset(column for column, _ in values)
            case ForGroup(name):
                return self._groups[name]
        return frozenset()

    def _told(self, place: int, asked: frozenset[str]) -> str:
        """What is known of an item; empty: nothing."""
        parts = [
            " ".join([*cue, ", ".join(values)])
            for column, cue in self._cues.items()
            if column in asked and (values := self._attributes.of(place, column))
        ]
        year = self._attributes.year_of(place)
        if parts and year is not None:
            parts.append(str(year))
        return f"{self._names[place]}: {', '.join(parts)}" if parts else ""
