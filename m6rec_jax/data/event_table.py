"""The events of a data set in a DuckDB database on disk: read once, split, and sorted as asked.

DuckDB sorts, joins and groups with several cores and spills to disk, so that memory is bounded
whatever the number of events; one byte per event, its part, is held in memory.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m6rec_jax.data import splits
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.splits import (
    EXCLUDED,
    STATISTICS_PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Split,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.processors import num_processors

log = logging.getLogger(__name__)
_MEMORY, _MEMORY_WHEN_SORTED = "1GB", "128MB"
# Each thread holds some of the memory: one alone has enough of the little.
_MOST_THREADS = 8
_BATCH_ROWS = 250_000
# Rows of a row group of the file that `save` writes: few, so that some users' events can be read
# alone.
_ROW_GROUP = 50_000
_SAVED = pa.schema(
    [
        ("row", pa.int64()),
        ("user", pa.int32()),
        ("item", pa.int32()),
        ("time", pa.float64()),
        ("value", pa.float64()),
    ]
)
# Part of a row, by `position` among the `length` events of its user, or by its `time`. A user's
# order is by time, and among equal times by the row's position in the file: in MovieLens-100k 76%
# of the rows share user and time with another row, so the tie-break is part of the definition.
#
#   per_user_temporal: the first ⌊train·n⌋ of a user's n events train, up to
#     ⌊(train + validation)·n⌋ validation. Where that is nothing of any user (a tenth of five
#     events), the events are split as by leave_one_out.
#   leave_one_out: a user's last event is test, the one before validation, all earlier ones train.
#     Users with fewer than three events have no history to predict from: theirs all train.
#   global_temporal: cuts all events at two moments, the times of the ⌊train·n⌋-th and the
#     ⌊(train + validation)·n⌋-th. Events at a cut belong to the later part, so no two parts share
#     a moment.
_PART_SQL = {
    # A share of many digits is a fraction of large numbers.
    "per_user_temporal": f"CASE WHEN position < length::HUGEINT * {{a}} // {{b}} THEN {TRAIN} "
    f"WHEN position < length::HUGEINT * {{c}} // {{d}} THEN {VALIDATION} ELSE {TEST} END",
    "leave_one_out": f"CASE WHEN length < 3 OR position < length - 2 THEN {TRAIN} "
    f"WHEN position = length - 2 THEN {VALIDATION} ELSE {TEST} END",
    "global_temporal": f"CASE WHEN time < {{first}} THEN {TRAIN} "
    f"WHEN time < {{second}} THEN {VALIDATION} ELSE {TEST} END",
}


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What a split made of a data set.

    Attributes:
      split: the split.
      codes: part code of each row of the events table `[rows]` int8.
      held_out: which items are held out `[items]` bool; all False but for 'held_out_items'.
    """

    split: Split
    codes: np.ndarray
    held_out: np.ndarray


class EventTable:
    """Events as the DuckDB table `events`: row, user, item, time, value (NaN for none).

    Users and items are indices in their tables. A context manager: the database goes when it ends.

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
            },
        )
        try:
            self._run("SET preserve_insertion_order = false")
            if saved:
                self.num_rows = self._read_saved(saved)
            else:
                self.num_rows = self._read()
                self._check_repeated()
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

    def shrink(self) -> None:
        """Gives memory back; sorting is slow from now on."""
        self._run("SET threads = 1")
        self._run(f"SET memory_limit = '{_MEMORY_WHEN_SORTED}'")

    def assign(self, split: Split) -> Assignment:
        """Gives every event its part.

        Raises:
          DataError: a part that is empty, or options that the split cannot fulfil.
        """
        base = split.base or split
        if base.kind == "by_group":
            raise DataError(
                f"split {split.name!r} is one of texts (a folder with corpus.json); "
                f"{self.dataset.directory} holds users, items and events"
            )
        self._give_parts(self._part_sql(base))
        validated = f"SELECT count(*) FROM parts WHERE part = {VALIDATION}"
        if base.kind == "per_user_temporal" and not self._number(validated):
            log.info(
                "%s: users have so few events that their shares leave none for validation; each "
                "user's last event tests, the one before validates",
                base.name,
            )
            self._give_parts(_PART_SQL["leave_one_out"])
        codes = np.concatenate(
            [batch["part"].to_numpy() for batch in self._stream("SELECT part FROM parts", "row")]
        )
        held_out = np.zeros(self.dataset.items.num_rows, bool)
        if split.kind == "held_out_items":
            ids = self.dataset.items.column(self.dataset.spec.items.id).to_pylist()
            held_out = splits.is_held_out(ids, **split.arguments())
            rows = [
                held_out[batch["item"].to_numpy()]
                for batch in self._stream("SELECT item FROM events", "row")
            ]
            # Test rows of items that are held out stay, beside those of other items.
            excluded = np.concatenate(rows) & (codes != splits.TEST)
            codes = np.where(excluded, splits.EXCLUDED, codes).astype(np.int8)
        elif split.kind == "few_shot":
            codes = splits.few_shot(codes, **split.arguments())
        self._run("DROP TABLE parts")
        splits.check_parts(codes, split.name)
        return Assignment(split, codes, held_out)

    def known(
        self, codes: np.ndarray, order: str, parts: Sequence[int] | None = None
    ) -> pa.RecordBatchReader:
        """Streams events with their `part`.

        Args:
          codes: part of every row `[rows]`.
          order: columns or expressions in SQL.
          parts: of which events are wanted; None: of all but those that are excluded.
        """
        schema = _SAVED.append(pa.field("part", pa.int8()))
        sorted_ = self._stream(f"SELECT {', '.join(_SAVED.names)} FROM events", order)

        # Not joined by the database: beside a join, little memory does not do for sorting.
        def with_parts() -> Iterator[pa.RecordBatch]:
            for batch in sorted_:
                part = codes[batch["row"].to_numpy()]
                wanted = part != EXCLUDED if parts is None else np.isin(part, parts)
                columns = [*batch.columns, pa.array(part)]
                found = pa.RecordBatch.from_arrays(columns, schema=schema)
                yield found.filter(pa.array(wanted))

        return pa.RecordBatchReader.from_batches(schema, with_parts())

    def save(self, codes: np.ndarray, path: Path) -> None:
        """Writes the events with their `part`, by user, then in the user's order."""
        events = self.known(codes, "user, time, row")
        with pq.ParquetWriter(path, events.schema, compression="zstd") as writer:
            for batch in events:
                writer.write_batch(batch, row_group_size=_ROW_GROUP)

    def leave_out(self, where: str, values: Sequence[Any] = ()) -> int:
        """Deletes the events that a condition in SQL is true of; returns how many these were.

        Args:
          where: the condition, with a `?` for each of the values.
          values: what stands there.
        """
        self._database.execute(f"DELETE FROM events WHERE {where}", list(values))
        ((count,),) = self._database.fetchall()
        return int(count)

    def times(self) -> tuple[float, float]:
        """Times of the first and the last event."""
        ((first, last),) = self._run("SELECT min(time), max(time) FROM events")
        return first, last

    def acting_users(self) -> list[int]:
        """Indices of the users that have an event, ascending."""
        return [user for (user,) in self._run("SELECT DISTINCT user FROM events ORDER BY user")]

    def share_of_repeats(self) -> float:
        """Share of the events with an item that the user had before."""
        query = "SELECT count(*) FROM (SELECT DISTINCT user, item FROM events)"
        return float(1 - self._number(query) / self.num_rows)

    def share_at_least(self, value: float) -> float:
        """Share of the events whose value is at least this."""
        query = f"SELECT count(*) FROM events WHERE value >= {value}"
        return float(self._number(query) / self.num_rows)

    def item_counts(self, codes: np.ndarray) -> np.ndarray:
        """Counted events of each item `[items]` int64; `codes` as for `known`."""
        counts = np.zeros(self.dataset.items.num_rows, np.int64)
        for batch in self.known(codes, "row", STATISTICS_PARTS):
            counts += np.bincount(batch["item"].to_numpy(), minlength=len(counts))
        return counts

    def _stream(self, query: str, order: str) -> pa.RecordBatchReader:
        return self._database.sql(f"{query} ORDER BY {order}").to_arrow_reader(_BATCH_ROWS)

    def _run(self, query: str) -> list[tuple[Any, ...]]:
        # A result that is not read to its end keeps the next query from starting.
        return self._database.execute(query).fetchall()

    def _number(self, query: str) -> Any:
        return self._run(query)[0][0]

    def _read(self) -> int:
        self._run(
            "CREATE TABLE events "
            "(row BIGINT, user INTEGER, item INTEGER, time DOUBLE, value DOUBLE)"
        )
        num_rows = 0
        for batch in self.dataset.iter_events(_BATCH_ROWS):
            names = ("row", "user_index", "item_index", "time")
            columns = [batch.column(name) for name in names]
            columns.append(pc.fill_null(batch.column("value"), float("nan")))
            table = pa.table(columns, names=["row", "user", "item", "time", "value"])
            self._database.register("batch", table)
            self._run("INSERT INTO events SELECT * FROM batch")
            self._database.unregister("batch")
            num_rows += batch.num_rows
        return num_rows

    def _read_saved(self, files: Sequence[Path]) -> int:
        self._database.execute(
            """CREATE TABLE events AS SELECT row_number() OVER (ORDER BY time, row) - 1 AS row,
              user, item, time, value FROM read_parquet(?) WHERE list_contains(?, part)""",
            [list(map(str, files)), list(STATISTICS_PARTS)],
        )
        return int(self._number("SELECT count(*) FROM events"))

    def _give_parts(self, part: str) -> None:
        """Makes the table `parts`, by an expression in SQL for the part of a row."""
        self._run(
            f"""CREATE OR REPLACE TABLE parts AS
            SELECT row, CAST({part} AS TINYINT) AS part FROM (
              SELECT row, user, time, row_number() OVER of_user - 1 AS position,
                count(*) OVER (PARTITION BY user) AS length
              FROM events WINDOW of_user AS (PARTITION BY user ORDER BY time, row)) AS event"""
        )

    def _part_sql(self, split: Split) -> str:
        arguments = split.arguments()
        if split.kind == "leave_one_out":
            return _PART_SQL[split.kind]
        if split.kind == "by_user":
            ids = self.dataset.users.column(self.dataset.spec.users.id).to_pylist()
            return self._given("user", splits.by_name(ids, **arguments))
        if split.kind == "by_column":
            return self._given("row", self.dataset.event_parts())
        first, second = splits.shares(split.kind, arguments["train"], arguments["validation"])
        (a, b), (c, d) = first.as_integer_ratio(), second.as_integer_ratio()
        cuts = {}
        if split.kind == "global_temporal":
            # Times at which the parts begin.
            for name, place in (
                ("first", self.num_rows * a // b),
                ("second", self.num_rows * c // d),
            ):
                query = f"SELECT time FROM events ORDER BY time LIMIT 1 OFFSET {place}"
                cuts[name] = f"{self._number(query)!r}::DOUBLE"
        return _PART_SQL[split.kind].format(a=a, b=b, c=c, d=d, **cuts)

    def _given(self, key: str, codes: np.ndarray) -> str:
        """Part of a row, by its `key`, a column that counts from 0, in `codes`."""
        table = pa.table({"key": pa.array(np.arange(len(codes))), "part": codes})
        self._database.register("given", table)
        return f"(SELECT part FROM given WHERE given.key = event.{key})"

    def _check_repeated(self) -> None:
        """Raises DataError where an event is there twice: it would be its own past, or test."""
        found = self._run(
            """SELECT user, item, min(row), max(row) FROM events GROUP BY user, item, time, value
            HAVING count(*) > 1 ORDER BY user, time, item, value LIMIT 1"""
        )
        if found:
            user, item, first, second = found[0]
            raise DataError(
                f"{self.dataset.directory}: rows {first} and {second} of the events are the same "
                f"event (user {self.dataset.user_records[user].id!r}, item "
                f"{self.dataset.item_records[item].id!r}, time and value); "
                "`m6rec data check --quarantine` sets repeated ones aside"
            )


def assign(dataset: Dataset, split: Split) -> Assignment:
    """`EventTable.assign` where nothing else is asked of the events; raises as both."""
    with (
        tempfile.TemporaryDirectory(prefix="m6rec-events-") as folder,
        EventTable(dataset, Path(folder) / "table") as events,
    ):
        return events.assign(split)
