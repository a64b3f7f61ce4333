"""A DuckDB database that lives as long as a block, in a temporary folder; memory is bounded."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

import duckdb


@contextlib.contextmanager
def scratch_database(memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yields an empty database on disk, which is removed when the block ends.

    Args:
      memory: held at most, such as "512MB"; more is spilled to the temporary folder (`TMPDIR`).
    """
    with tempfile.TemporaryDirectory(prefix="m6rec-database-") as folder:
        config = {"memory_limit": memory, "temp_directory": f"{folder}/spilled"}
        with duckdb.connect(f"{folder}/scratch.duckdb", config=config) as database:
            yield database
