"""Strict reading of a data set folder: the first thing that is wrong raises a `DataError`.

`users` and `items` are held in memory; `events` may be larger than memory and is streamed.
`data.dataset.check` makes the same checks and reports every problem of a folder.
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

from m6rec_jax.data.dataset import columns, files
from m6rec_jax.data.dataset.checks import Check, Column, row_checks
from m6rec_jax.data.dataset.columns import identifier
from m6rec_jax.data.dataset.schema import SPEC_FILE, TABLES, DatasetSpec, TableSpec
from m6rec_jax.data.dataset.tables import Tables, columns_of
from m6rec_jax.data.splitting.splits import PART_NAMES
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Item, User

_BATCH_ROWS = 65_536
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
        """Opens a folder; raises DataError where `dataset.json`, a file or a declared column is
        missing or wrong.
        """
        directory = Path(directory)
        spec = DatasetSpec.load(directory)
        tables: list[tuple[Path, ...]] = []
        for table in TABLES:
            described = getattr(spec, table)
            paths = files.table_files(directory, table, described.file)
            for path in paths:
                files.require_columns(path, [*described.kinds])
            tables.append(tuple(paths))
        users, items, events = tables
        return cls(directory, spec, users, items, events)

    @cached_property
    def users(self) -> pa.Table:
        """The users `[users]`: id (string) and declared columns, in the order of the files; raises
        DataError where there are none, or one is wrong.
        """
        return _read_table(self.user_files, "users", self.spec.users)

    @cached_property
    def items(self) -> pa.Table:
        """The items table `[items]`, as `users`."""
        return _read_table(self.item_files, "items", self.spec.items)

    @cached_property
    def user_records(self) -> Sequence[User]:
        """The users in the order of the table; lists are tuples, missing values None or ()."""
        return [User(*row) for row in _records(self.users, self.spec.users)]

    @cached_property
    def item_records(self) -> Sequence[Item]:
        """The items in the order of the table; lists are tuples, missing values None or ()."""
        return [Item(*row) for row in _records(self.items, self.spec.items)]

    def iter_events(self, batch_size: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Streams the events in the order of the file, so many at a time, as `EVENT_SCHEMA`; raises
        DataError where there are none, or one is wrong.
        """
        spec = self.spec.events
        with Tables(self.directory) as tables:
            for name in ("users", "items"):
                ids = getattr(self, name).column(0)
                numbers = pa.table({"id": ids, "index": np.arange(len(ids))})
                tables.database.register(f"good_{name}", numbers)
            declared = columns_of(spec)
            reason = (
                f"concat(time, ' is not later than {self.after}, the last event that is prepared. "
                "An update takes what came since: leave earlier events out of its files, or make "
                "everything anew with `m6rec data prepare`')"
            )
            late = Check("not_later", spec.time, f"time <= '{self.after}'::DOUBLE", reason)
            checks = [*row_checks("events", declared, TABLES), late]
            _read(tables, "events", declared, self.event_files, checks)
            value = "CAST(NULL AS DOUBLE)" if spec.value is None else "value"
            events = tables.database.sql(
                f"""SELECT row, u.index AS user_index, i.index AS item_index, time, {value} AS value
                FROM events JOIN good_users AS u ON u.id = user
                JOIN good_items AS i ON i.id = item ORDER BY row"""
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
        """The part code of each event, as the column `events.part` names it, `[rows]` int8."""
        declared = [column for column in columns_of(self.spec.events) if column.slot == "part"]
        if not declared:
            raise DataError(
                f"{self.directory}: the split 'by_column' needs a column of the events that names "
                f"the part of each ({', '.join(PART_NAMES)}); declare it in {SPEC_FILE}, as in "
                '"events": {..., "part": "split"}'
            )
        with Tables(self.directory) as tables:
            _read(tables, "events", declared, self.event_files, row_checks("events", declared))
            parts = tables.database.sql("SELECT part FROM events ORDER BY row").fetchnumpy()["part"]
        return np.asarray([PART_NAMES[part] for part in parts], np.int8)

    def read(self, tables: Tables) -> None:
        """Reads users, items and events into an empty database; raises DataError as they do."""
        paths = zip(TABLES, (self.user_files, self.item_files, self.event_files), strict=True)
        for table, of_table in paths:
            declared = columns_of(getattr(self.spec, table))
            _read(tables, table, declared, of_table, row_checks(table, declared, TABLES))


def _read(
    tables: Tables,
    table: str,
    declared: Sequence[Column],
    paths: Sequence[Path],
    checks: Iterable[Check],
) -> None:
    """Reads files into a table; raises DataError of the first file or row that is wrong."""
    tables.read(table, declared, paths)
    tables.check(table, checks)
    first = """SELECT file, number, column_name, reason FROM problems
      WHERE source = ? AND severity = 'error' ORDER BY file, number, rowid LIMIT 1"""
    for file, number, column, reason in tables.rows(first, [table]):
        if number is None:
            raise DataError(reason)
        where = f"{tables.files[file]}, row {number}" + (f", column {column!r}" if column else "")
        raise DataError(
            f"{where}: {reason} (`m6rec data check` lists every problem of a folder, and "
            "sets such rows aside with --clean)"
        )


def _read_table(paths: Sequence[Path], table: str, spec: TableSpec) -> pa.Table:
    declared = columns_of(spec)
    with Tables(paths[0].parent) as tables:
        _read(tables, table, declared, paths, row_checks(table, declared))
        slots = ", ".join(f"{slot} AS {identifier(name)}" for slot, name, _ in declared)
        rows = tables.database.sql(f"SELECT {slots} FROM {table} ORDER BY row")
        return rows.to_arrow_table().cast(columns.arrow_schema(spec.kinds)).combine_chunks()


def read_rows(
    paths: Sequence[Path], kinds: Mapping[str, str]
) -> Iterator[tuple[Path, int, list[Any]]]:
    """Streams rows of a table of other columns: file, number, and values. Raises DataError where a
    column is missing, there are no rows, or one is wrong.
    """
    declared = [Column(f"c{place}", *kind) for place, kind in enumerate(kinds.items())]
    with Tables(paths[0].parent) as tables:
        _read(tables, "texts", declared, paths, row_checks("texts", declared))
        slots = ", ".join(column.slot for column in declared)
        result = tables.database.execute(f"SELECT file, number, {slots} FROM texts ORDER BY row")
        while rows := result.fetchmany(_ROWS_AT_ONCE):
            for file, number, *values in rows:
                yield tables.files[file], number, values


def read_items(path: str | Path, spec: DatasetSpec) -> list[Item]:
    """Items of a file that has the columns of a data set but is no part of it: a newer catalogue.
    Raises DataError where there is no such file, or rows are wrong.
    """
    path = Path(path)
    table = _read_table(files.table_files(path.parent, "items", path.name), "items", spec.items)
    return [Item(*row) for row in _records(table, spec.items)]


def _records(table: pa.Table, spec: TableSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    lists = [name for name, kind in spec.columns.items() if kind == "list<string>"]
    for row in table.to_pylist():
        id_ = row.pop(spec.id)
        yield id_, row | {name: tuple(row[name] or ()) for name in lists}


def write_dataset(folder: Path, spec: DatasetSpec, users: Rows, items: Rows, events: Rows) -> None:
    """Writes `dataset.json` and the three Parquet files that it names; rows are dictionaries, or
    lists of values by column.
    """
    for table, rows in zip(TABLES, (users, items, events), strict=True):
        described = getattr(spec, table)
        schema = columns.arrow_schema(described.kinds)
        make = pa.table if isinstance(rows, Mapping) else pa.Table.from_pylist
        pq.write_table(make(rows, schema=schema), folder / described.file, compression="zstd")
    spec.save(folder)
