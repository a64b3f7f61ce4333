"""What the reader of a format gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

# Columns of what is imported, whatever they are called in its files. `LINE` is where a row stood.
USER, ITEM, LINE = "user_id", "item_id", "line"
# Of events: unix seconds, or where there are none, the place of an event in an order.
TIMESTAMP, POSITION, RATING = "timestamp", "position", "rating"


@dataclass(frozen=True)
class Imported:
    """Tables of a data set in another format.

    Attributes:
      name: what its files call it.
      item_file, event_file: the files of items and events.
      items: columns `ITEM`, `LINE` and those of `item_columns`.
      item_columns: attribute column -> type, as in `schema.COLUMN_TYPES`.
      users: columns `USER`, `LINE` and those of `user_columns`; None where users have no file.
      user_columns: as `item_columns`.
      events: batches with columns `USER`, `ITEM`, `TIMESTAMP` or `POSITION`, `LINE` and perhaps
        `RATING`, none of them null.
      has_times, has_ratings: which of these columns events have.
      order: where there are no times, what `POSITION` counts.
    """

    name: str
    item_file: Path
    event_file: Path
    items: pa.Table
    item_columns: Mapping[str, str]
    users: pa.Table | None
    user_columns: Mapping[str, str]
    events: Iterator[pa.RecordBatch]
    has_times: bool
    has_ratings: bool
    order: str = ""
