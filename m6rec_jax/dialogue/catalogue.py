"""A catalogue as dialogues speak of it: names, values and years of items, and who they are for.

Dialogue rows and conversations tell a model what is known of the items that were named:

    Fargo: crime, drama, by Joel Coen, Ethan Coen, 1996

A dialogue, the items that it mentions and their attributes, chosen by what is asked for, are a tree
(as in PCRS-TKA): where a genre or a person is asked for, the model reads these columns alone.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.metrics.phrases import phrase_key
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import attribute_values

# The folded words of a value, equal for all its spellings (`phrase_key`).
Key = tuple[str, ...]
# A value: its column and its words.
ColumnValue = tuple[str, Key]


class DialogueCatalogue:
    """Items, and the words for them.

    Args:
      items: with their attributes.
      names: by which items are named in a dialogue, such as titles without a year.
      words: how people speak of them.
      titles: as replies write them; None: the names.

    Attributes:
      groups: of each group the values that items for it have, and those that they lack.
      spellings: of each value as the catalogue has it first.
      columns: the words of each column of which some item has a value.
      years: of the items, float64 `[items]`; NaN where it is not known.
      last_year: the latest of these; None where none is known.
    """

    def __init__(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        words: DialogueWords,
        titles: Sequence[str] | None = None,
    ) -> None:
        self.names, self.words, self.titles = names, words, titles or names
        self.groups = {
            name: (_column_values(group.wanted), _column_values(group.unwanted))
            for name, group in words.groups.items()
        }
        # Nobody speaks of some columns of groups, such as the age for which a film is.
        of_groups = {column for sides in self.groups.values() for s in sides for column, _ in s}
        key_of = functools.cache(phrase_key)
        self.spellings: dict[ColumnValue, str] = {}
        places: defaultdict[ColumnValue, list[int]] = defaultdict(list)
        self._values = [attribute_values(item, words.attributes) for item in items]
        for place, item in enumerate(items):
            unspoken = attribute_values(item, of_groups - words.attributes.keys())
            for column, values in (self._values[place] | unspoken).items():
                for value in filter(key_of, values):
                    places[column, key_of(value)].append(place)
                    if column in words.attributes:
                        self.spellings.setdefault((column, key_of(value)), value)
        self._places = {value: np.unique(members) for value, members in places.items()}
        spelled = {column for column, _ in self.spellings}
        self.columns = {c: said for c, said in words.attributes.items() if c in spelled}
        years = [str(item.attributes.get(words.year)).strip() for item in items]
        self.years = np.array([y if re.fullmatch(r"\d{4}(\.0)?", y) else "nan" for y in years])
        self.years = self.years.astype(np.float64)
        self.last_year = max(self.known_years(range(len(years))), default=None)

    def has(self, values: Collection[ColumnValue]) -> np.ndarray:
        """Which items have at least one of these values, bool `[items]`."""
        mask = np.zeros(len(self.years), bool)
        for value in values:
            mask[self._places.get(value, [])] = True
        return mask

    def telling_values(self, place: int) -> frozenset[ColumnValue]:
        """An item's values, but for those that most items have."""
        most = len(self.years) / 2
        return frozenset(v for v in self.values_of(place) if len(self._places.get(v, ())) <= most)

    def of(self, place: int, column: str) -> tuple[str, ...]:
        """An item's values of a column, as the catalogue has them."""
        return self._values[place].get(column, ())

    def values_of(self, place: int) -> frozenset[ColumnValue]:
        """All values of an item."""
        return _column_values(self._values[place])

    def known_years(self, places: Iterable[int]) -> list[int]:
        """Years of some items, as far as they are known."""
        return [int(self.years[place]) for place in places if not math.isnan(self.years[place])]

    def year_of(self, place: int) -> int | None:
        """An item's year; None: it is not known."""
        return next(iter(self.known_years([place])), None)

    def segments(self, places: Sequence[int], columns: Collection[str], number: int) -> list[str]:
        """What a model reads of the latest `number` items of which something is known.

        `places` are in the order in which they were named; of `columns` (none: all) and the year.
        """
        texts = filter(None, (self._segment(place, columns) for place in reversed(places)))
        return list(itertools.islice(texts, number))[::-1]

    def _segment(self, place: int, columns: Collection[str]) -> str:
        """An item, each column after its first cue, such as "by"; empty: nothing is known."""
        clauses = [
            " ".join([*said.cues[:1], ", ".join(values)])
            for column, said in self.columns.items()
            if (not columns or column in columns) and (values := self.of(place, column))
        ]
        years = map(str, self.known_years([place]))
        return f"{self.names[place]}: {', '.join([*clauses, *years])}" if clauses else ""


def _column_values(values: Mapping[str, Iterable[str]]) -> frozenset[ColumnValue]:
    return frozenset((column, phrase_key(v)) for column, of in values.items() for v in of)
