"""Attributes of items that another data set knows: joined by title and year.

Titles count as equal where their words are, whatever their case and signs. Years may be one apart,
for things come out in different years in different places; the nearest one is taken. Where two
items are equally near nobody knows which is meant, and none is taken.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import SPEC_FILE
from m6rec_jax.dialogue.words import FILMS
from m6rec_jax.errors import DataError
from m6rec_jax.metrics.phrases import words
from m6rec_jax.text.records import Item, Value

_MOST_YEARS_APART = 1


class JoinedAttributes:
    """What a data set, whose items have `title` and `year`, knows of items.

    Of `columns` those that it lacks are left out. `files` are those that are read, `types` the type
    of each column.
    """

    def __init__(self, folder: Path, columns: Collection[str]) -> None:
        dataset = Dataset.open(folder)
        kinds = dataset.spec.items.columns
        joined = [column for column in columns if column in kinds]
        if not joined or kinds.get("title") != "string" or kinds.get("year") != "int":
            raise DataError(
                f"{folder}: attributes are taken from items with a 'title', a 'year' (an int) and "
                f"a column of DialogueWords.attributes ({', '.join(columns) or 'none'}; --gin_file "
                f"{FILMS} has those of films); these have {', '.join(kinds)}"
            )
        self.files = [folder / SPEC_FILE, *dataset.item_files]
        schema = dataset.items.schema
        self.types: dict[str, pa.DataType] = {name: schema.field(name).type for name in joined}
        # Words of a title -> year and attributes of each item of that title.
        self._by_title: dict[Any, list[tuple[int, dict[str, Value]]]] = defaultdict(list)
        for item in dataset.item_records:
            title, year = item.attributes["title"], item.attributes["year"]
            if isinstance(title, str) and isinstance(year, int):
                attributes = {name: item.attributes[name] for name in joined}
                self._by_title[_key(title)].append((year, attributes))

    def joined(self, items: Sequence[Item]) -> tuple[list[Item], int]:
        """Items with what is known of them, None where nothing is, and how many are known."""
        nothing: dict[str, Value] = dict.fromkeys(self.types)
        attributes = [self._of(item) for item in items]
        pairs = zip(items, attributes, strict=True)
        joined = [Item(item.id, {**item.attributes, **(more or nothing)}) for item, more in pairs]
        return joined, sum(more is not None for more in attributes)

    def _of(self, item: Item) -> dict[str, Value] | None:
        title, year = str(item.attributes["title"]), item.attributes["year"]
        if not isinstance(year, int):
            return None
        same = [(abs(other - year), known) for other, known in self._by_title.get(_key(title), ())]
        nearest = min((apart for apart, _ in same), default=math.inf)
        items = [known for apart, known in same if apart == nearest <= _MOST_YEARS_APART]
        return items[0] if len(items) == 1 else None


def _key(title: str) -> tuple[str, ...]:
    """What equal titles have in common: their words, or all of one that has none."""
    return tuple(words(title)) or (title,)
