"""Strict reading of a data set folder: the first thing that is wrong raises a `DataError`.

`users` and `items` are held in memory; `events` may be larger than memory and is streamed.
`data.check` is the lenient twin that reports every problem of a folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data import columns, files
from m6rec_jax.data.checked_rows import CheckedRows, check_events, check_ids, check_part_names
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec, EventsSpec, TableSpec
from m6rec_jax.data.splits import PART_NAMES
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Item, User

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
        found = []
        for table in ("users", "items", "events"):
            own: TableSpec | EventsSpec = getattr(spec, table)
            paths = files.table_files(directory, table, own.file)
            for path in paths:
                files.require_columns(path, [*own.kinds])
            found.append(tuple(paths))
        users, items, events = found
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
    def user_index(self) -> Mapping[str, int]:
        """User id -> index in the users table."""
        return _index(self.users.column(self.spec.users.id))

    @cached_property
    def item_index(self) -> Mapping[str, int]:
        """Item id -> index in the items table."""
        return _index(self.items.column(self.spec.items.id))

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

    def iter_events(self, batch_size: int = files.DEFAULT_BATCH_SIZE) -> Iterator[pa.RecordBatch]:
        """Streams the events in the order of the file, so many at a time, as `EVENT_SCHEMA`.

        Raises:
          DataError: an empty table, a null or unknown id, a time that is not one, a value that is
            null or not a number.
        """
        spec = self.spec.events
        starts: list[tuple[int, Path]] = []
        for raw in files.raw_batches(self.event_files, [*spec.kinds], batch_size):
            rows = CheckedRows(raw, starts, "events")
            users, items = check_events(rows, spec, self.user_index, self.item_index)
            times = rows.values[spec.time]
            self._check_past(rows, times)
            values = pa.nulls(len(times), pa.float64())
            if spec.value is not None:
                values = rows.values[spec.value]
            arrays = [pa.array(rows.numbers), pa.array(users), pa.array(items), times, values]
            yield pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)
        if not starts:
            raise DataError(f"{_names(self.event_files)} has no rows")

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
        codes = []
        for raw in files.raw_batches(self.event_files, [name]):
            rows = CheckedRows(raw, [], "events")
            check_part_names(rows, name)
            parts = rows.values[name].to_pylist()
            codes.append(np.asarray([PART_NAMES[part] for part in parts], np.int8))
        return np.concatenate(codes)

    def _check_past(self, rows: CheckedRows, times: pa.Array) -> None:
        seconds = times.to_numpy()
        early = np.flatnonzero(seconds <= self.after)
        if early.size:
            raise DataError(
                f"{rows.raw.path}, row {rows.raw.rows[early[0]]}, column "
                f"{self.spec.events.time!r}: {seconds[early[0]]} is not later than {self.after}, "
                "the last event that is prepared. An update takes what came since: leave earlier "
                "events out of its files, or make everything anew with `m6rec data prepare`"
            )


def _names(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"


def _index(ids: pa.ChunkedArray) -> Mapping[str, int]:
    return {identifier: index for index, identifier in enumerate(ids.to_pylist())}


def _read_table(paths: Sequence[Path], table: str, spec: TableSpec) -> pa.Table:
    schema = columns.arrow_schema(spec.kinds)
    batches = []
    starts: list[tuple[int, Path]] = []
    seen: dict[str, int] = {}
    for raw in files.raw_batches(paths, schema.names):
        rows = CheckedRows(raw, starts, table)
        check_ids(rows, spec.id, seen)
        for name, kind in spec.columns.items():
            rows.convert(name, kind)
        arrays = [rows.values[name] for name in schema.names]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    if not batches:
        raise DataError(f"{_names(paths)} has no rows")
    return pa.Table.from_batches(batches).combine_chunks()


def read_items(path: str | Path, spec: DatasetSpec) -> list[Item]:
    """Items of a Parquet or CSV file that is no part of a data set folder: a newer catalogue.

    Args:
      path: has the columns of the data set's items table.
      spec: of the data set.

    Raises:
      DataError: no such file, another format, or rows that an items table must not have.
    """
    path = Path(path)
    found = files.table_files(path.parent, "items", path.name)
    files.require_columns(path, [*spec.items.kinds])
    table = _read_table(found, "items", spec.items)
    return [Item(identifier, row) for identifier, row in _records(table, spec.items)]


def _records(table: pa.Table, spec: TableSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    names = list(spec.columns)
    attributes = []
    for name, kind in spec.columns.items():
        values = table.column(name).to_pylist()
        if kind == "list<string>":
            values = [tuple(value or ()) for value in values]
        attributes.append(values)
    ids = table.column(spec.id).to_pylist()
    rows = zip(*attributes, strict=True) if attributes else iter([()] * len(ids))
    for identifier, row in zip(ids, rows, strict=True):
        yield identifier, dict(zip(names, row, strict=True))


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
