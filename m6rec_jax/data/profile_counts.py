"""What users of one sex, age or trade choose: for those of whom nothing but that is known.

Each value of a users' column counts the events of its users; numbers are cut into fifths. A value
of few users is left out: its counts would tell what one of them had.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.io.atomic import atomic_file

FILE, FORMAT = "profile_counts.parquet", 1
_LEAST_USERS, _BANDS = 20, 5
# Events of an average value that are added to each: without them a single one would decide.
_PRIOR = 100.0


class ProfileCounts(NamedTuple):
    """Events by value of a users' column, and item.

    Attributes:
      counts: events of each item `[items]`.
      chosen: column -> value, or the largest number of a band -> items that its users chose,
        ascending `[n]`, and how often `[n]`.
    """

    counts: np.ndarray
    chosen: Mapping[str, Mapping[Any, tuple[np.ndarray, np.ndarray]]]

    def lift(self, profile: Mapping[str, Any], items: np.ndarray) -> np.ndarray | None:
        """Log of how many times likelier items `[n]` are for a profile; None: as for all."""
        lifts = []
        for column, by_value in self.chosen.items():
            if (value := _place(profile.get(column), by_value)) is not None:
                chosen, numbers = by_value[value]
                places = np.searchsorted(chosen, items).clip(max=len(chosen) - 1)
                number = np.where(chosen[places] == items, numbers[places], 0)
                expected = self.counts[items] * (numbers.sum() / self.counts.sum())
                lifts.append(np.log((number + _PRIOR) / (expected + _PRIOR)))
        return np.sum(lifts, axis=0) if lifts else None

    @classmethod
    def load(cls, folder: Path, counts: np.ndarray) -> Self:
        """Reads what was saved; nothing where no users' columns were counted.

        Args:
          folder: of prepared data.
          counts: events of each item `[items]`.
        """
        chosen: dict[str, dict[Any, tuple[np.ndarray, np.ndarray]]] = {}
        if (path := folder / FILE).is_file():
            table = pq.read_table(path).group_by(["column", "text", "upto"])
            lists = table.aggregate([("item", "list"), ("count", "list")]).to_pylist()
            for row in lists:
                value = row["text"] if row["upto"] is None else row["upto"]
                order = np.argsort(row["item_list"])
                items, numbers = np.array([row["item_list"], row["count_list"]])[:, order]
                chosen.setdefault(row["column"], {})[value] = items, numbers
        return cls(counts, chosen)


def save_profile_counts(
    folder: str | os.PathLike[str],
    columns: Mapping[str, Sequence[Any]],
    users: np.ndarray,
    items: np.ndarray,
) -> None:
    """Counts events by value and item, and writes them; nothing where no value has enough users.

    Args:
      folder, columns: of prepared data; of the users table, each `[users]`.
      users, items: of the events that count for everybody `[n]`.
    """
    tables = []
    for column, values in columns.items():
        for value, of_value in _groups(values):
            chosen, counts = np.unique(items[of_value[users]], return_counts=True)
            is_text = isinstance(value, str)
            tables.append(
                {
                    "column": [column] * len(chosen),
                    "text": [value if is_text else None] * len(chosen),
                    "upto": [None if is_text else value] * len(chosen),
                    "item": chosen.tolist(),
                    "count": counts.tolist(),
                }
            )
    if not tables:
        return
    types = {"column": pa.string(), "text": pa.string(), "upto": pa.float64()}
    schema = pa.schema(types | {"item": pa.int64(), "count": pa.int64()})
    with atomic_file(Path(folder) / FILE) as scratch:
        table = pa.concat_tables(pa.table(part, schema=schema) for part in tables)
        pq.write_table(table, scratch, compression="zstd")


def _groups(values: Sequence[Any]) -> list[tuple[Any, np.ndarray]]:
    """Values of a column, or the largest of a band, and which users have them `[users]` bool."""
    there = [value for value in values if value is not None]
    if all(isinstance(value, str) for value in there):
        texts = np.array(values, object)
        enough = [text for text, users in Counter(there).items() if users >= _LEAST_USERS]
        return [(text, texts == text) for text in sorted(enough)]
    if len(there) < _BANDS * _LEAST_USERS or not all(isinstance(v, int | float) for v in there):
        return []
    numbers = np.array([np.nan if value is None else value for value in values], float)
    ends = np.unique(np.nanquantile(numbers, np.arange(1, _BANDS) / _BANDS, method="lower"))
    band = np.searchsorted(ends, numbers)
    return [
        (end, (band == place) & ~np.isnan(numbers))
        for place, end in enumerate([*ends.tolist(), np.inf])
    ]


def _place(value: Any, values: Collection[Any]) -> Any:
    """Which of a column's values, or bands, one belongs to; None: to none."""
    if isinstance(value, str):
        return value if value in values else None
    if value is None or isinstance(next(iter(values)), str):
        return None
    return min(end for end in values if end >= value)
