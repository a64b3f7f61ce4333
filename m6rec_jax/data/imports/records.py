"""What the reader of a format gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m6rec_jax.data.checks import Check
from m6rec_jax.data.tables import Source

# Columns of what is imported, whatever they are called in its files.
USER, ITEM = "user_id", "item_id"
# Of events: unix seconds, or where there are none, the place of an event in an order.
TIMESTAMP, POSITION, RATING = "timestamp", "position", "rating"


@dataclass(frozen=True)
class ImportedTable:
    """A table in a file of another format.

    Attributes:
      path: the file.
      source: as `data.tables` reads it.
      names: of all of the file's columns.
      columns: attribute column -> type, as in `schema.COLUMN_TYPES`, for users and items.
    """

    path: Path
    source: Source
    names: Sequence[str]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Imported:
    """Tables of a data set in another format.

    Attributes:
      name: what its files call it.
      items: with the column `ITEM`.
      users: with the column `USER`; None where users have no file.
      events: with the columns `USER`, `ITEM`, `TIMESTAMP` or `POSITION`, and perhaps `RATING`.
      order: where there are no times, what `POSITION` counts; else "".
      notes: for the user: what was not used.
      checks: of events without times, beside those of all.
    """

    name: str
    items: ImportedTable
    users: ImportedTable | None
    events: ImportedTable
    order: str
    notes: Sequence[str]
    checks: Sequence[Check] = ()
