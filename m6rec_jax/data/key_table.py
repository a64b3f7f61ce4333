"""Which rows of a data set repeat an earlier one or refer to nobody, found by DuckDB.

It puts on disk what does not fit in memory, which is bounded whatever the number of rows.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from m6rec_jax.io.processors import num_processors

# Held at most; more is spilled to the temporary folder (`TMPDIR`).
_MEMORY = "256MB"
_KEYS = {
    "users": {"id": "VARCHAR"},
    "items": {"id": "VARCHAR"},
    "events": {"user": "VARCHAR", "item": "VARCHAR", "time": "DOUBLE", "value": "DOUBLE"},
}
_REFERENCES = {"user": "users", "item": "items"}


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
    """The keys of one table, and the ids of users and items to which events may refer.

    Rows are numbered over all files of a table.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database
        self._known: set[str] = set()

    def begin(self, table: str) -> None:
        """Begins with users, items or events; where one was left out, all its ids are good."""
        keys = ", ".join(f"{name} {kind}" for name, kind in _KEYS[table].items())
        for name, columns in (
            ("keys", f"row BIGINT, good BOOLEAN, {keys}"),
            ("faults", "kind VARCHAR, row BIGINT, first BIGINT"),
        ):
            self._database.execute(f"CREATE OR REPLACE TABLE {name} ({columns})")
        if table in _REFERENCES.values():
            self._known.add(table)
            self._database.execute(f"CREATE TABLE {table} (id VARCHAR)")

    def add(self, columns: Mapping[str, Any]) -> None:
        """Adds rows: their number, whether they are good, and the columns of their key."""
        self._insert("keys", columns)

    def keep_ids(self, table: str, ids: pa.Array) -> None:
        """Takes ids for those of users or items that exist."""
        self._insert(table, {"id": ids})

    def known(self, table: str, ids: Sequence[str]) -> set[str]:
        """Those of some ids of users or items that exist."""
        if not ids:
            return set()
        query = f"SELECT id FROM {table} WHERE id IN (SELECT unnest(?))"
        return {id_ for (id_,) in self._database.execute(query, [ids]).fetchall()}

    def find_faults(self, table: str) -> None:
        """Finds what good rows repeat, and (events) those whose user or item is not known."""
        for column, others in _REFERENCES.items():
            if table == "events" and others in self._known:
                self._database.execute(
                    f"""INSERT INTO faults SELECT 'unknown_{column}', row, NULL FROM keys
                    ANTI JOIN {others} ON {column} = id WHERE {column} IS NOT NULL"""
                )
        key = ", ".join(_KEYS[table])
        kind = "duplicate_event" if table == "events" else "duplicate_id"
        self._database.execute(
            f"""INSERT INTO faults
            WITH good AS (FROM keys ANTI JOIN faults USING (row) WHERE good),
              repeated AS (
                SELECT {key}, min(row) AS first FROM good GROUP BY {key} HAVING count(*) > 1)
            SELECT '{kind}', row, first FROM good JOIN repeated USING ({key}) WHERE row > first"""
        )

    def share_of_repeats(self) -> float:
        """Share of the good events with an item that the user had before."""
        ((events, pairs),) = self._database.execute(
            """SELECT sum(times), count(*) FROM (
              SELECT count(*) AS times FROM keys ANTI JOIN faults USING (row) WHERE good
              GROUP BY user, item)"""
        ).fetchall()
        return 1 - pairs / events if events else 0.0

    def faults(self, kind: str, start: int, stop: int) -> list[tuple[int, int]]:
        """What was found from one row up to another.

        Args:
          kind: `duplicate_id`, `duplicate_event`, `unknown_user` or `unknown_item`.

        Returns:
          each row with that in which the same stands first (None for what is not known).
        """
        found: list[tuple[int, int]] = self._database.execute(
            "SELECT row, first FROM faults WHERE kind = ? AND row >= ? AND row < ? ORDER BY row",
            [kind, start, stop],
        ).fetchall()
        return found

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self._database.register("batch", pa.table(dict(columns)))
        self._database.execute(f"INSERT INTO {table} SELECT * FROM batch")
        self._database.unregister("batch")
