"""Attributes of items that another data set knows: joined by title and year.

Titles count as equal where their words are, whatever their case and signs. Years may be one apart,
for things come out in different years in different places; the nearest one is taken. Where two
items are equally near nobody knows which is meant, and none is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.errors import DataError
from m6rec_jax.metrics.phrases import words
from m6rec_jax.text.records import Item, Value

_TITLE, _YEAR = "title", "year"
_YEARS_APART = 1


class JoinedAttributes:
    """What a data set knows of items.

    Args:
      folder: of the data set; its items have the columns `title` and `year`.
      columns: that are wanted; those that it lacks are left out.

    Attributes:
      files: that are read.
      types: column to its type.

    Raises:
      DataError: as `Dataset.open`; or a column is missing.
    """

    def __init__(self, folder: Path, columns: Collection[str]) -> None:
        dataset = Dataset.open(folder)
        kinds = dataset.spec.items.columns
        found = [column for column in columns if column in kinds]
        if not found or kinds.get(_TITLE) != "string" or kinds.get(_YEAR) != "int":
            raise DataError(
                f"{folder}: attributes are taken from items with a 'title', a 'year' (an int) and "
                f"a column of DialogueWords.attributes ({', '.join(columns) or 'none'}); these "
                f"have {', '.join(kinds)}"
            )
        self.files = [folder / SPEC_FILE, *dataset.item_files]
        self.types: dict[str, pa.DataType] = {
            column: dataset.items.schema.field(column).type for column in found
        }
        self._by_title: dict[tuple[str, ...], list[tuple[int, dict[str, Value]]]]
        self._by_title = defaultdict(list)
        for item in dataset.item_records:
            title, year = item.attributes[_TITLE], item.attributes[_YEAR]
            if isinstance(title, str) and isinstance(year, int):
                known = {column: item.attributes[column] for column in found}
                self._by_title[_key(title)].append((year, known))

    def joined(self, items: Sequence[Item]) -> tuple[list[Item], int]:
        """Items with what is known of them, None where nothing is, and how many are known.

        Args:
          items: with the attributes `title` and `year`.
        """
        nothing: dict[str, Value] = dict.fromkeys(self.types)
        known = [self._of(item) for item in items]
        pairs = zip(items, known, strict=True)
        joined = [Item(item.id, {**item.attributes, **(own or nothing)}) for item, own in pairs]
        return joined, sum(own is not None for own in known)

    def _of(self, item: Item) -> dict[str, Value] | None:
        year = item.attributes[_YEAR]
        if not isinstance(year, int):
            return None
        same = self._by_title.get(_key(str(item.attributes[_TITLE])), [])
        nearest = min((abs(own - year) for own, _ in same), default=_YEARS_APART + 1)
        near = [known for own, known in same if abs(own - year) == nearest]
        return near[0] if nearest <= _YEARS_APART and len(near) == 1 else None


def _key(title: str) -> tuple[str, ...]:
    """What equal titles have in common: their words, or all of one that has none."""
    return tuple(words(title)) or (title,)
