"""The attributes of a catalogue as arrays: which items have a value, and of which year they are."""

from __future__ import annotations

import functools
import math
import re
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
    """What is known of the items.

    Args:
      items: the catalogue.
      columns: whose values count; those that no item has are left out.
      year: the column of the year.
      unspoken: columns by whose values items are chosen (`has`), and of which nobody speaks.

    Attributes:
      columns: those of which something is known.
      spellings: column, words → the value as the catalogue has it first.
      years: float64 `[items]`, NaN where it is not known.
    """

    def __init__(
        self,
        items: Sequence[Item],
        columns: Iterable[str],
        year: str,
        unspoken: Iterable[str] = (),
    ) -> None:
        self.num_items = len(items)
        self.spellings: dict[ColumnValue, str] = {}
        self._own: list[dict[str, tuple[str, ...]]] = []
        places: dict[ColumnValue, list[int]] = {}
        columns, keys = tuple(columns), dict[str, Key]()
        every = (*columns, *(column for column in unspoken if column not in columns))
        for place, item in enumerate(items):
            own = attribute_values(item, every)
            self._own.append({c: values for c, values in own.items() if values and c in columns})
            for column, values in own.items():
                for value in values:
                    if value not in keys:
                        keys[value] = phrase_key(value)
                    if keys[value] and column in columns:
                        self.spellings.setdefault((column, keys[value]), value)
                    if keys[value]:
                        places.setdefault((column, keys[value]), []).append(place)
        self._places = {value: np.unique(found) for value, found in places.items()}
        known = {column for column, _ in self._places}
        self.columns = tuple(column for column in columns if column in known)
        self.years = np.array([_year(item.attributes.get(year)) for item in items], np.float64)

    def has(self, values: Collection[ColumnValue]) -> np.ndarray:
        """Which items have at least one of these values, bool `[items]`."""
        found = np.zeros(self.num_items, bool)
        for value in values:
            if value in self._places:
                found[self._places[value]] = True
        return found

    def count(self, value: ColumnValue) -> int:
        """How many items have a value."""
        return len(self._places.get(value, ()))

    def of(self, place: int, column: str) -> tuple[str, ...]:
        """An item's values of a column, as the catalogue has them."""
        return self._own[place].get(column, ())

    def values_of(self, place: int) -> frozenset[ColumnValue]:
        """All values of an item."""
        own = self._own[place].items()
        return frozenset((column, phrase_key(v)) for column, values in own for v in values)

    def year_of(self, place: int) -> int | None:
        """An item's year; None: it is not known."""
        year = self.years[place]
        return None if math.isnan(year) else int(year)

    def known_years(self, places: Iterable[int]) -> list[int]:
        """Years of some items, as far as they are known."""
        years = map(self.year_of, places)
        return [year for year in years if year is not None]

    @functools.cached_property
    def last_year(self) -> int | None:
        """Of all items; None where no year is known."""
        known = self.years[~np.isnan(self.years)]
        return int(known.max()) if len(known) else None


def _year(value: Value) -> float:
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"\d{4}", value.strip()) else math.nan
    return float(value) if isinstance(value, int | float) else math.nan
