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
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec, EventsSpec, TableSpec
from m6rec_jax.data.splits import PART_NAMES
from m6rec_jax.data.values import FIRST_TIME, LAST_TIME, out_of_range, unknown_id_hint
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean
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
        return _read_table(self.user_files, self.spec.users)

    @cached_property
    def items(self) -> pa.Table:
        """The items table `[items]`, as `users`."""
        return _read_table(self.item_files, self.spec.items)

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
        empty = True
        for raw in files.raw_batches(self.event_files, [*spec.kinds], batch_size):
            empty = False
            users = _strict(raw, spec.user, columns.ID, required=True)
            items = _strict(raw, spec.item, columns.ID, required=True)
            times = _strict(raw, spec.time, columns.TIME, required=True)
            self._check_times(raw, times)
            if spec.value is None:
                values = pa.nulls(raw.batch.num_rows, pa.float64())
            else:
                values = _strict(raw, spec.value, columns.VALUE, required=True)
            arrays = [
                pa.array(raw.first_row + raw.rows),
                _lookup(raw, spec.user, users, self.user_index, "users"),
                _lookup(raw, spec.item, items, self.item_index, "items"),
                times,
                values,
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)
        if empty:
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
            parts = _strict(raw, name, "string", required=True).to_pylist()
            for row, part in zip(raw.rows, parts, strict=True):
                if part not in PART_NAMES:
                    raise DataError(
                        f"{raw.path}, row {row}, column {name!r}: {part!r} is none of "
                        f"{', '.join(PART_NAMES)}{did_you_mean(part, PART_NAMES)}{_ADVICE}"
                    )
            codes.append(np.asarray([PART_NAMES[part] for part in parts], np.int8))
        return np.concatenate(codes)

    def _check_times(self, raw: files.RawBatch, times: pa.Array) -> None:
        seconds = times.to_numpy()
        where = f"{raw.path}, row {{}}, column {self.spec.events.time!r}: "
        bad = np.flatnonzero((seconds < FIRST_TIME) | (seconds > LAST_TIME))
        if bad.size:
            reason = out_of_range(seconds[bad[0]])
            raise DataError(where.format(raw.rows[bad[0]]) + reason + _ADVICE)
        early = np.flatnonzero(seconds <= self.after)
        if early.size:
            raise DataError(
                where.format(raw.rows[early[0]])
                + f"{seconds[early[0]]} is not later than {self.after}, the last event that is "
                "prepared. An update takes what came since: leave earlier events out of its files, "
                "or make everything anew with `m6rec data prepare`"
            )


def _names(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"


def _index(ids: pa.ChunkedArray) -> Mapping[str, int]:
    return {identifier: index for index, identifier in enumerate(ids.to_pylist())}


def _read_table(paths: Sequence[Path], spec: TableSpec) -> pa.Table:
    kinds, schema = spec.kinds, columns.arrow_schema(spec.kinds)
    batches = []
    seen: dict[str, tuple[Path, int]] = {}
    for raw in files.raw_batches(paths, list(kinds)):
        arrays = [
            _strict(raw, name, kind, required=name == spec.id) for name, kind in kinds.items()
        ]
        for identifier, row in zip(arrays[0].to_pylist(), raw.rows.tolist(), strict=True):
            if identifier in seen:
                path, first = seen[identifier]
                raise DataError(
                    f"{raw.path}, row {row}: the {spec.id} {identifier!r} stands in row {first} "
                    f"of {path.name} already; ids must be unique{_ADVICE}"
                )
            seen[identifier] = (raw.path, row)
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
    table = _read_table(found, spec.items)
    return [Item(identifier, row) for identifier, row in _records(table, spec.items)]


_ADVICE = " (`m6rec data check` lists every problem of a folder)"


def _strict(raw: files.RawBatch, name: str, kind: str, *, required: bool) -> pa.Array:
    converted, bad = columns.convert(raw.batch.column(name), kind)
    if bad:
        first = bad[0]
        raise DataError(
            f"{raw.path}, row {raw.rows[first.offset]}, column {name!r}: {first.reason}{_ADVICE}"
        )
    if required and converted.null_count:
        offset = int(np.argmax(converted.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(
            f"{raw.path}, row {raw.rows[offset]}, column {name!r}: the value is missing{_ADVICE}"
        )
    return converted


def _lookup(
    raw: files.RawBatch, name: str, ids: pa.Array, index: Mapping[str, int], table: str
) -> pa.Array:
    """Places of the ids `[n]` in the users or items table, looking each distinct id up once."""
    encoded = ids.dictionary_encode()
    indices = [index.get(identifier, -1) for identifier in encoded.dictionary.to_pylist()]
    found = np.asarray(indices, np.int64)[encoded.indices.to_numpy()]
    if (found < 0).any():
        offset = int(np.argmax(found < 0))
        identifier = ids[offset].as_py()
        raise DataError(
            f"{raw.path}, row {raw.rows[offset]}, column {name!r}: {identifier!r} is not "
            f"in the {table} table{unknown_id_hint(identifier, index)}; add it there, or let "
            "`m6rec data check --quarantine` set such rows aside"
        )
    return pa.array(found)


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
