"""Strict reading of a data set folder: the first thing that is wrong raises a `DataError`.

`users` and `items` are held in memory; `events` may be larger than memory and is streamed.
`data.check` makes the same checks and reports every problem of a folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data import columns, files
from m6rec_jax.data.checks import Check, Column, event_checks, id_checks, part_check, value_checks
from m6rec_jax.data.columns import identifier
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec, EventsSpec, TableSpec
from m6rec_jax.data.splits import PART_NAMES
from m6rec_jax.data.tables import Tables, columns_of
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Item, User

DEFAULT_BATCH_SIZE = 65_536
_ROWS_AT_ONCE = 10_000

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]

EVENT_SCHEMA = pa.schema(
    [
        # Place in the events table (over all its files, from 0): breaks ties of time.
        ("row", pa.int64()),
        # Places in the users and items tables.
        ("user_index", pa.int64()),
        ("item_index", pa.int64()),
        ("time", pa.float64()),  # unix seconds
        ("value", pa.float64()),  # null where events have no value
    ]
)


@dataclass(frozen=True)
class Dataset:
    """A data set folder. Make it with `Dataset.open`.

    Attributes:
      directory: the folder.
      spec: its parsed `dataset.json`.
      user_files, item_files, event_files: the files of each table.
      after: the time after which events must lie: the past that an update goes on from.
    """

    directory: Path
    spec: DatasetSpec
    user_files: tuple[Path, ...]
    item_files: tuple[Path, ...]
    event_files: tuple[Path, ...]
    after: float = -math.inf

    @classmethod
    def open(cls, directory: str | Path) -> Dataset:
        """Opens a folder and checks that its files exist and have the declared columns.

        Raises:
          DataError: no or a wrong `dataset.json`, a missing or ambiguous file, a missing column,
            a Parquet file that is cut off.
        """
        directory = Path(directory)
        spec = DatasetSpec.load(directory)
        tables = []
        for table in ("users", "items", "events"):
            described: TableSpec | EventsSpec = getattr(spec, table)
            paths = files.table_files(directory, table, described.file)
            for path in paths:
                files.require_columns(path, [*described.kinds])
            tables.append(tuple(paths))
        users, items, events = tables
        return cls(directory, spec, users, items, events)

    # ---- users and items

    @cached_property
    def users(self) -> pa.Table:
        """The users table `[users]`: id (string) and declared columns, in the order of the files.

        Raises:
          DataError: an empty table, a null or repeated id, or a value that does not fit its type.
        """
        return _read_table(self.user_files, "users", self.spec.users)

    @cached_property
    def items(self) -> pa.Table:
        """The items table `[items]`, as `users`."""
        return _read_table(self.item_files, "items", self.spec.items)

    @cached_property
    def user_records(self) -> Sequence[User]:
        """The users in the order of the table; lists are tuples, missing values None or ()."""
        spec = self.spec.users
        return [User(identifier, row) for identifier, row in _records(self.users, spec)]

    @cached_property
    def item_records(self) -> Sequence[Item]:
        """The items in the order of the table; lists are tuples, missing values None or ()."""
        spec = self.spec.items
        return [Item(identifier, row) for identifier, row in _records(self.items, spec)]

    # ---- events

    def iter_events(self, batch_size: int = DEFAULT_BATCH_SIZE) -> Iterator[pa.RecordBatch]:
        """Streams the events in the order of the file, so many at a time, as `EVENT_SCHEMA`.

        Raises:
          DataError: an empty table, a null or unknown id, a time that is not one, a value that is
            null or not a number.
        """
        spec = self.spec.events
        indices = {"users": self._indices(self.users), "items": self._indices(self.items)}
        with Tables(self.directory) as tables:
            for name, ids in indices.items():
                tables.database.register(f"known_{name}", ids)
            declared = columns_of(spec)
            checks = [*value_checks(declared), *event_checks(declared, tuple(indices))]
            _load(tables, "events", self.event_files, declared, checks)
            self._check_past(tables)
            value = "CAST(NULL AS DOUBLE)" if spec.value is None else "value"
            events = tables.database.sql(
                f"""SELECT row, u.index AS user_index, i.index AS item_index, time, {value} AS value
                FROM events JOIN known_users AS u ON u.id = user
                JOIN known_items AS i ON i.id = item ORDER BY row"""
            )
            for batch in events.to_arrow_reader(batch_size):
                yield batch.cast(EVENT_SCHEMA)

    def events(self) -> pa.Table:
        """The whole events table in memory: as `iter_events`, with `user_id` and `item_id`."""
        table = pa.Table.from_batches(self.iter_events(), EVENT_SCHEMA)
        users = self.users.column(self.spec.users.id).take(table["user_index"])
        items = self.items.column(self.spec.items.id).take(table["item_index"])
        return table.append_column("user_id", users).append_column("item_id", items)

    def event_parts(self) -> np.ndarray:
        """The part code of each event, as the column `events.part` names it, `[rows]` int8.

        Raises:
          DataError: no such column is declared, or a value that is no part.
        """
        name = self.spec.events.part
        if name is None:
            raise DataError(
                f"{self.directory}: the split 'by_column' needs a column of the events that names "
                f"the part of each ({', '.join(PART_NAMES)}); declare it in {SPEC_FILE}, as in "
                '"events": {..., "part": "split"}'
            )
        declared = [column for column in columns_of(self.spec.events) if column.name == name]
        with Tables(self.directory) as tables:
            _load(tables, "events", self.event_files, declared, [part_check(*declared)])
            parts = tables.database.sql("SELECT part FROM events ORDER BY row").fetchnumpy()["part"]
        return np.asarray([PART_NAMES[part] for part in parts], np.int8)

    def _check_past(self, tables: Tables) -> None:
        early = tables.rows(
            "SELECT file, number, time FROM events WHERE time <= ? ORDER BY row LIMIT 1",
            [self.after],
        )
        for file, number, time in early:
            raise DataError(
                f"{tables.files[file]}, row {number}, column {self.spec.events.time!r}: {time} is "
                f"not later than {self.after}, the last event that is prepared. An update takes "
                "what came since: leave earlier events out of its files, or make everything anew "
                "with `m6rec data prepare`"
            )

    @staticmethod
    def _indices(table: pa.Table) -> pa.Table:
        return pa.table({"id": table.column(0), "index": np.arange(table.num_rows)})


def _load(
    tables: Tables,
    table: str,
    paths: Sequence[Path],
    declared: Sequence[Column],
    checks: Iterable[Check],
) -> None:
    """Reads files into a table; raises DataError where a row is wrong, or there is none."""
    tables.create(table, declared)
    for path in paths:
        names = files.require_columns(path, [column.name for column in declared])
        tables.load(table, path, tables.source(path, names), declared)
    if not tables.num_rows[table]:
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        raise DataError(f"{paths[0]}{more} has no rows")
    tables.check(table, checks)
    if (wrong := tables.first_error(table)) is not None:
        path, number, column, reason = wrong
        where = f"{path}, row {number}" + (f", column {column!r}" if column else "")
        raise DataError(
            f"{where}: {reason} (`m6rec data check` lists every problem of a folder, and "
            "sets such rows aside with --quarantine)"
        )


def _read_table(paths: Sequence[Path], table: str, spec: TableSpec) -> pa.Table:
    declared = columns_of(spec)
    with Tables(paths[0].parent) as tables:
        checks = [*value_checks(declared), *id_checks(table, spec.id)]
        _load(tables, table, paths, declared, checks)
        slots = ", ".join(f"{slot} AS {identifier(name)}" for slot, name, _ in declared)
        rows = tables.database.sql(f"SELECT {slots} FROM {table} ORDER BY row")
        return rows.to_arrow_table().cast(columns.arrow_schema(spec.kinds)).combine_chunks()


def read_rows(
    paths: Sequence[Path], kinds: Mapping[str, str]
) -> Iterator[tuple[Path, int, list[Any]]]:
    """Streams rows of a table that is none of users, items or events: file, number, and values.

    Args:
      paths: the files.
      kinds: column -> kind, as in `columns.SQL_TYPES`.

    Raises:
      DataError: a missing column, no rows, a null id, or a value that does not fit its type.
    """
    declared = [Column(f"c{place}", *kind) for place, kind in enumerate(kinds.items())]
    with Tables(paths[0].parent) as tables:
        _load(tables, "texts", paths, declared, value_checks(declared))
        slots = ", ".join(column.slot for column in declared)
        result = tables.database.execute(f"SELECT file, number, {slots} FROM texts ORDER BY row")
        while rows := result.fetchmany(_ROWS_AT_ONCE):
            for file, number, *values in rows:
                yield tables.files[file], number, values


def read_items(path: str | Path, spec: DatasetSpec) -> list[Item]:
    """Items of a Parquet or CSV file that is no part of a data set folder: a newer catalogue.

    Args:
      path: has the columns of the data set's items table.
      spec: of the data set.

    Raises:
      DataError: no such file, another format, or rows that an items table must not have.
    """
    path = Path(path)
    table = _read_table(files.table_files(path.parent, "items", path.name), "items", spec.items)
    return [Item(identifier, row) for identifier, row in _records(table, spec.items)]


def _records(table: pa.Table, spec: TableSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in table.to_pylist():
        identifier = row.pop(spec.id)
        yield (
            identifier,
            {
                name: tuple(row[name] or ()) if kind == "list<string>" else row[name]
                for name, kind in spec.columns.items()
            },
        )


def write_dataset(
    folder: Path,
    spec: DatasetSpec,
    users: Rows,
    items: Rows,
    events: Rows,
    event_types: Mapping[str, str],
) -> None:
    """Writes a data set folder: `dataset.json` and three Parquet files.

    Args:
      folder: exists.
      spec: names the files and their columns.
      users, items, events: rows as dictionaries, or lists of values by column.
      event_types: types of the events' columns beside user and item, as in `schema.COLUMN_TYPES`.
    """
    of_events = {spec.events.user: columns.ID, spec.events.item: columns.ID, **event_types}
    for rows, file, kinds in (
        (users, spec.users.file, spec.users.kinds),
        (items, spec.items.file, spec.items.kinds),
        (events, spec.events.file, of_events),
    ):
        schema = columns.arrow_schema(kinds)
        make = pa.table if isinstance(rows, Mapping) else pa.Table.from_pylist
        pq.write_table(make(rows, schema=schema), folder / str(file), compression="zstd")
    spec.save(folder)
