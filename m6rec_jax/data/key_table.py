"""Which events of a data set repeat an earlier one, found by DuckDB.

It puts on disk what does not fit in memory, which is bounded whatever the number of events.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from m6rec_jax.io.processors import num_processors

# Held at most; more is spilled to the temporary folder (`TMPDIR`).
_MEMORY = "256MB"


@contextlib.contextmanager
def key_table() -> Iterator[KeyTable]:
    """Yields an empty one; what did not fit in memory is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="m6rec-keys-") as folder:
        config: dict[str, Any] = {
            "memory_limit": _MEMORY,
            "temp_directory": f"{folder}/spilled",
            # Each thread takes some of the memory.
            "threads": min(4, num_processors()),
        }
        with duckdb.connect(config=config) as database:
            yield KeyTable(database)


class KeyTable:
    """The keys of good events. Rows are numbered over all files."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database
        database.execute(
            "CREATE TABLE keys (row BIGINT, user VARCHAR, item VARCHAR, time DOUBLE, value DOUBLE)"
        )
        database.execute("CREATE TABLE repeats (row BIGINT, first BIGINT)")

    def add(self, events: pa.Table) -> None:
        """Adds events: `row`, their number, and `user`, `item`, `time` and `value`, their key."""
        self._database.register("batch", events)
        self._database.execute("INSERT INTO keys SELECT row, user, item, time, value FROM batch")
        self._database.unregister("batch")

    def find_repeats(self) -> None:
        """Finds the events whose key an earlier one has."""
        self._database.execute(
            """INSERT INTO repeats WITH repeated AS (
              SELECT user, item, time, value, min(row) AS first FROM keys
              GROUP BY user, item, time, value HAVING count(*) > 1)
            SELECT row, first FROM keys JOIN repeated USING (user, item, time, value)
            WHERE row > first"""
        )

    def share_of_repeats(self) -> float:
        """Share of the events, each once, with an item that the user had before."""
        ((events, pairs),) = self._database.execute(
            """SELECT sum(times), count(*) FROM (
              SELECT count(*) AS times FROM keys ANTI JOIN repeats USING (row)
              GROUP BY user, item)"""
        ).fetchall()
        return 1 - pairs / events if events else 0.0

    def repeats(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Repeats from one row up to another, each with the row in which the same stands first."""
        return self._database.execute(
            "SELECT row, first FROM repeats WHERE row >= ? AND row < ? ORDER BY row", [start, stop]
        ).fetchall()
