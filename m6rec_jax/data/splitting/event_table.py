"""The events of a data set in a DuckDB database on disk: read once, split, and sorted as asked.

DuckDB sorts, joins and groups with several cores and spills to disk, so that memory is bounded
whatever the number of events.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.splitting import splits
from m6rec_jax.data.splitting.splits import (
    EXCLUDED,
    STATISTICS_PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Split,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.workers import num_processors

log = logging.getLogger(__name__)
_MEMORY, _MEMORY_WHEN_SORTED = "1GB", "128MB"
# Each thread holds some of the memory: one alone has enough of the little.
_MOST_THREADS = 8
_BATCH_ROWS = 250_000
# Rows of a row group of the file that `save` writes: few, so that some users' events can be read
# alone.
_ROW_GROUP = 50_000
_COLUMNS = "row, user, item, time, value"
# Part of a row, by `position` among the `length` events of its user, or by its `time`. A user's
# order is by time, and among equal times by the row's position in the file: in MovieLens-100k 76%
# of the rows share user and time with another row, so the tie-break is part of the definition.
#
#   per_user_temporal: the first ⌊train·n⌋ of a user's n events train, up to
#     ⌊(train + validation)·n⌋ validation. Where nobody has any of these, as leave_one_out.
#   leave_one_out: a user's last event is test, the one before validation, all earlier ones train.
#     Users with fewer than three events have no history to predict from: theirs all train.
#   global_temporal: cuts all events at the times of the ⌊train·n⌋-th and the
#     ⌊(train + validation)·n⌋-th. Events at a cut belong to the later part.
_TIME = "(SELECT time FROM events ORDER BY time LIMIT 1 OFFSET"
_PART_SQL = {
    # A share of many digits is a fraction of large numbers.
    "per_user_temporal": f"CASE WHEN position < length::HUGEINT * {{a}} // {{b}} THEN {TRAIN} "
    f"WHEN position < length::HUGEINT * {{c}} // {{d}} THEN {VALIDATION} ELSE {TEST} END",
    "leave_one_out": f"CASE WHEN length < 3 OR position < length - 2 THEN {TRAIN} "
    f"WHEN position = length - 2 THEN {VALIDATION} ELSE {TEST} END",
    "global_temporal": f"CASE WHEN time < {_TIME} {{first}}) THEN {TRAIN} "
    f"WHEN time < {_TIME} {{second}}) THEN {VALIDATION} ELSE {TEST} END",
}


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What a split made of a data set: a part code for each row of the events table `[rows]` int8,
    and which items are held out `[items]` bool.
    """

    split: Split
    codes: np.ndarray
    held_out: np.ndarray


class EventTable:
    """Events as the DuckDB table `events`: row, user, item, time, value (NaN for none), part.

    Users and items are indices in their tables; all are of the training part until `assign` or
    `give_parts` says otherwise. A context manager: the database goes when it ends.

    Args:
      dataset: an open data set.
      folder: for the database; must not exist.
      saved: files that `save` wrote. Their events that training rows may see are then read in
        place of the data set's, and numbered in the order of time.

    Raises:
      DataError: as `Dataset.iter_events`, or an event is there twice.
    """

    def __init__(self, dataset: Dataset, folder: Path, saved: Sequence[Path] = ()) -> None:
        self.dataset = dataset
        self._folder = folder
        folder.mkdir(parents=True)
        self._database = duckdb.connect(
            folder / "events.duckdb",
            config={
                "memory_limit": _MEMORY,
                "temp_directory": str(folder / "spilled"),
                "threads": min(_MOST_THREADS, num_processors()),
                "preserve_insertion_order": False,
            },
        )
        try:
            if saved:
                self.query(
                    f"""CREATE TABLE events AS SELECT row_number() OVER (ORDER BY time, row) - 1
                    AS row, user, item, time, value, {TRAIN}::TINYINT AS part
                    FROM read_parquet(?) WHERE list_contains(?, part)""",
                    [[*map(str, saved)], [*STATISTICS_PARTS]],
                )
            else:
                self._read()
            self.num_rows: int = self.number("SELECT count(*) FROM events")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the database."""
        self._database.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement in SQL gives, with a `?` for each of the values."""
        # A result that is not read to its end keeps the next query from starting.
        return self._database.execute(sql, list(values)).fetchall()

    def number(self, sql: str) -> Any:
        """The one value of a query."""
        return self.query(sql)[0][0]

    def shrink(self) -> None:
        """Gives memory back; sorting is slow from now on."""
        self.query("SET threads = 1")
        self.query(f"SET memory_limit = '{_MEMORY_WHEN_SORTED}'")

    def assign(self, split: Split) -> Assignment:
        """Gives every event its part.

        Raises:
          DataError: a part that is empty, or options that the split cannot fulfil.
        """
        base, options = split.base or split, split.arguments()
        if base.kind == "by_group":
            raise DataError(f"{self.dataset.directory}: split {split.name!r} is for texts alone")
        self.give_parts(self._part_sql(base))
        validated = f"SELECT count(*) FROM events WHERE part = {VALIDATION}"
        if base.kind == "per_user_temporal" and not self.number(validated):
            log.info("%s: users have too few events for these shares: leave_one_out", base.name)
            self.give_parts(_PART_SQL["leave_one_out"])
        held_out = np.zeros(self.dataset.items.num_rows, bool)
        if split.kind == "held_out_items":
            ids = self.dataset.items.column(self.dataset.spec.items.id).to_pylist()
            held_out = splits.is_held_out(ids, **options)
            # Test rows of items that are held out stay, beside those of other items.
            excluded = f"part <> {TEST} AND {self.lookup('item', held_out)}"
            self.give_parts(f"CASE WHEN {excluded} THEN {EXCLUDED} ELSE part END")
        elif split.kind == "few_shot":
            self.give_parts(self.lookup("row", splits.few_shot(self._codes(), **options)))
        codes = self._codes()
        splits.check_parts(codes, split.name)
        return Assignment(split, codes, held_out)

    def give_parts(self, part: str) -> None:
        """Gives every event the part that an expression in SQL says.

        It may name an event's columns, its `position` in its user's order and the `length` of that.
        """
        self.query(
            f"""CREATE TABLE assigned AS SELECT {_COLUMNS}, CAST({part} AS TINYINT) AS part FROM (
              SELECT *, row_number() OVER of_user - 1 AS position,
                count(*) OVER (PARTITION BY user) AS length
              FROM events WINDOW of_user AS (PARTITION BY user ORDER BY time, row)) AS event;
            DROP TABLE events;
            ALTER TABLE assigned RENAME TO events"""
        )

    def lookup(self, key: str, values: np.ndarray) -> str:
        """An expression in SQL for what `values` `[n]` hold at an event's user, item or row."""
        table = pa.table({"key": pa.array(np.arange(len(values))), "value": values})
        self._database.register(f"by_{key}", table)
        return f"(SELECT value FROM by_{key} WHERE by_{key}.key = event.{key})"

    def ordered(self, order: str, parts: Sequence[int] | None = None) -> pa.RecordBatchReader:
        """Streams events with their `part`, in an order in SQL, of some `parts`; None: of all but
        those that are excluded.
        """
        return self._database.sql(self._ordered(order, parts)).to_arrow_reader(_BATCH_ROWS)

    def save(self, path: Path) -> None:
        """Writes the events with their `part`, by user, then in the user's order."""
        self.query(
            f"COPY ({self._ordered('user, time, row')}) TO '{path}' "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP})"
        )

    def _ordered(self, order: str, parts: Sequence[int] | None = None) -> str:
        where = f"part <> {EXCLUDED}" if parts is None else f"part IN {tuple(parts)}"
        return f"SELECT {_COLUMNS}, part FROM events WHERE {where} ORDER BY {order}"

    def _codes(self) -> np.ndarray:
        query = "SELECT part FROM events ORDER BY row"
        return np.asarray(self._database.sql(query).fetchnumpy()["part"])

    def _read(self) -> None:
        """Reads the data set; raises DataError where an event would be its own past, or test."""
        self.query(
            "CREATE TABLE events "
            "(row BIGINT, user INTEGER, item INTEGER, time DOUBLE, value DOUBLE, part TINYINT)"
        )
        for batch in self.dataset.iter_events(_BATCH_ROWS):
            self._database.register("batch", pa.Table.from_batches([batch]))
            self.query(
                "INSERT INTO events SELECT row, user_index, item_index, time, "
                f"coalesce(value, 'nan'), {TRAIN} FROM batch"
            )
        repeated = self.query(
            """SELECT user, item, min(row), max(row) FROM events GROUP BY user, item, time, value
            HAVING count(*) > 1 ORDER BY user, time, item, value LIMIT 1"""
        )
        for user, item, first, second in repeated:
            raise DataError(
                f"{self.dataset.directory}: rows {first} and {second} of the events are the same "
                f"event (user {self.dataset.user_records[user].id!r}, item "
                f"{self.dataset.item_records[item].id!r}, time and value); "
                "`m6rec data check --clean` sets repeated ones aside"
            )

    def _part_sql(self, split: Split) -> str:
        arguments = split.arguments()
        if split.kind == "leave_one_out":
            return _PART_SQL[split.kind]
        if split.kind == "by_user":
            ids = self.dataset.users.column(self.dataset.spec.users.id).to_pylist()
            return self.lookup("user", splits.by_name(ids, **arguments))
        if split.kind == "by_column":
            return self.lookup("row", self.dataset.event_parts())
        first, second = splits.shares(split.kind, arguments["train"], arguments["validation"])
        (a, b), (c, d) = first.as_integer_ratio(), second.as_integer_ratio()
        cuts = {"first": self.num_rows * a // b, "second": self.num_rows * c // d}
        return _PART_SQL[split.kind].format(a=a, b=b, c=c, d=d, **cuts)


def assign(dataset: Dataset, split: Split) -> Assignment:
    """`EventTable.assign` where nothing else is asked of the events; raises as both."""
    with (
        tempfile.TemporaryDirectory(prefix="m6rec-events-") as folder,
        EventTable(dataset, Path(folder) / "table") as events,
    ):
        return events.assign(split)
