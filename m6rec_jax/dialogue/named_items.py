"""Segments with the attributes of items that a dialogue has named, for a model to read.

    Fargo: crime, drama, by Joel Coen, Ethan Coen, 1996

A dialogue, the items that it mentions and their attributes, chosen by what is asked for, are a tree
(as in PCRS-TKA): where a genre or a person is asked for, the model reads these columns alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from m6rec_jax.dialogue.attributes import ItemAttributes
from m6rec_jax.dialogue.wishes import ForGroup, Unwanted, Wanted, Wish
from m6rec_jax.dialogue.words import DialogueWords


class NamedItems:
    """Renders named items.

    Args:
      names: by which items are named, such as titles without a year.
      attributes: of the items.
      words: their columns stand in this order, each after its first cue, such as "by".
      number: of items, at most.

    Raises:
      ConfigError: the words are of no column.
    """

    def __init__(
        self, names: Sequence[str], attributes: ItemAttributes, words: DialogueWords, number: int
    ) -> None:
        words.check_attributes()
        self._names, self._attributes, self._number = names, attributes, number
        self._cues = {column: one.cues[:1] for column, one in words.of_attributes().items()}
        self._groups = words.of_groups()

    def segments(self, places: Sequence[int], wishes: Sequence[Wish]) -> list[str]:
        """Of the latest items of which something is known, the latest last.

        Args:
          places: of items, in the order in which they were named.
          wishes: where some are of columns, these alone are read, and the year.
        """
        columns = {column for wish in wishes for column in self._columns(wish)} or {*self._cues}
        texts = filter(None, (self._text(place, columns) for place in reversed(places)))
        return list(itertools.islice(texts, self._number))[::-1]

    def _columns(self, wish: Wish) -> set[str]:
        match wish:
            case Wanted(values) | Unwanted(values):
                return {column for column, _ in values}
            case ForGroup(name):
                return {*self._groups[name].wanted, *self._groups[name].unwanted}
        return set()

    def _text(self, place: int, columns: set[str]) -> str:
        """An item's segment; empty: nothing is known."""
        clauses = [
            " ".join([*cue, ", ".join(values)])
            for column, cue in self._cues.items()
            if column in columns and (values := self._attributes.of(place, column))
        ]
        years = map(str, self._attributes.known_years([place]))
        return f"{self._names[place]}: {', '.join([*clauses, *years])}" if clauses else ""
