"""The attributes of a catalogue as arrays: which items have a value, and of which year they are."""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from m6rec_jax.metrics.phrases import phrase_key
from m6rec_jax.text.records import Item, Value
from m6rec_jax.text.writing_templates import attribute_values

# The folded words of a value, equal for all its spellings (`phrase_key`).
Key = tuple[str, ...]
# A value: its column and its words.
ColumnValue = tuple[str, Key]


class ItemAttributes:
    """The items' values and years.

    Args:
      items: the catalogue.
      columns: whose values count; those that no item has are left out.
      year: the column of the year.
      unspoken: columns by whose values items are chosen (`has`), and of which nobody speaks.

    Attributes:
      columns: those of which some item has a value.
      spellings: column, words → the value as the catalogue has it first.
      years: float64 `[items]`, NaN where it is not known.
      last_year: of all items; None where no year is known.
    """

    def __init__(
        self,
        items: Sequence[Item],
        columns: Iterable[str],
        year: str,
        unspoken: Iterable[str] = (),
    ) -> None:
        spoken = tuple(columns)
        key_of = functools.cache(phrase_key)
        self.spellings: dict[ColumnValue, str] = {}
        self._values = [attribute_values(item, spoken) for item in items]
        places: defaultdict[ColumnValue, list[int]] = defaultdict(list)
        for place, item in enumerate(items):
            for column, values in attribute_values(item, (*spoken, *unspoken)).items():
                for value in values:
                    if key := key_of(value):
                        places[column, key].append(place)
                        if column in spoken:
                            self.spellings.setdefault((column, key), value)
        self._places = {value: np.unique(members) for value, members in places.items()}
        used = {column for column, _ in self.spellings}
        self.columns = tuple(column for column in spoken if column in used)
        self.years = np.array([_year(item.attributes.get(year)) for item in items], np.float64)
        dated = self.years[~np.isnan(self.years)]
        self.last_year = int(dated.max()) if len(dated) else None

    def has(self, values: Collection[ColumnValue]) -> np.ndarray:
        """Which items have at least one of these values, bool `[items]`."""
        mask = np.zeros(len(self.years), bool)
        for value in values:
            mask[self._places.get(value, [])] = True
        return mask

    def count(self, value: ColumnValue) -> int:
        """How many items have a value."""
        return len(self._places.get(value, ()))

    def of(self, place: int, column: str) -> tuple[str, ...]:
        """An item's values of a column, as the catalogue has them."""
        return self._values[place].get(column, ())

    def values_of(self, place: int) -> frozenset[ColumnValue]:
        """All values of an item."""
        by_column = self._values[place].items()
        return frozenset((column, phrase_key(v)) for column, values in by_column for v in values)

    def known_years(self, places: Iterable[int]) -> list[int]:
        """Years of some items, as far as they are known."""
        return [int(self.years[place]) for place in places if not math.isnan(self.years[place])]

    def year_of(self, place: int) -> int | None:
        """An item's year; None: it is not known."""
        return next(iter(self.known_years([place])), None)


def _year(value: Value) -> float:
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"\d{4}", value.strip()) else math.nan
    return float(value) if isinstance(value, int | float) else math.nan
