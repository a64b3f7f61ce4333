"""The tables of a data set in DuckDB: read once, converted, checked by queries, and written.

Rows are counted from 0 (the first row below a CSV header is row 0). A table in the database has the
columns

    row      number over all of its files
    file     index of the file in `files`
    number   number inside this file

and, for each declared column, a *slot* with its value, null where it is missing or does not fit,
and `bad_<slot>` with the text of a value that does not fit. Slots of events are `user`, `item`,
`time`, `value` and `part`; those of users and items are `id`, then `c0`, `c1`, ... The table
`problems` has a row for each row and problem; its `line` is a line of a CSV file that cannot be
read at all. DuckDB spills to `TMPDIR` what does not fit into its memory.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import duckdb

from m6rec_jax.data.dataset import files
from m6rec_jax.data.dataset.checks import Check, Column
from m6rec_jax.data.dataset.columns import KINDS, conversion, identifier, literal
from m6rec_jax.data.dataset.schema import TABLES, DatasetSpec, EventsSpec, TableSpec
from m6rec_jax.data.dataset.values import out_of_range
from m6rec_jax.errors import DataError
from m6rec_jax.io.workers import num_processors

_MEMORY = "512MB"
# Each thread takes some of the memory.
_MOST_THREADS = 4
_SETUP = """
SET TimeZone = 'UTC';
CREATE TABLE files (file INTEGER, name VARCHAR);
CREATE TABLE problems (
  source VARCHAR, row BIGINT, file INTEGER, number BIGINT, kind VARCHAR, column_name VARCHAR,
  severity VARCHAR, reason VARCHAR, line VARCHAR);
CREATE VIEW rejected AS
  SELECT DISTINCT source, row FROM problems WHERE severity = 'error' AND row IS NOT NULL;
CREATE VIEW rejected_rows AS SELECT row FROM rejected WHERE source = 'events';
CREATE MACRO place(number) AS concat('row ', number);
CREATE MACRO shown(x) AS
  concat('''', CASE WHEN length(x) > 60 THEN concat(left(x, 57), '...') ELSE x END, '''');
"""


class Source(NamedTuple):
    """A file as SQL has it: a relation with `file_row_number`, from 0.

    Attributes:
      sql: the relation.
      types: name of a column -> type, as DuckDB names it.
      first_line: of a text file, the line of the row 0; None of Parquet.
    """

    sql: str
    types: Mapping[str, str]
    first_line: int | None


def columns_of(spec: TableSpec | EventsSpec) -> list[Column]:
    """The declared columns of a table."""
    slots = ["id", *(f"c{place}" for place in range(len(spec.kinds) - 1))]
    if isinstance(spec, EventsSpec):
        slots = [slot for slot in ("user", "item", "time", "value", "part") if getattr(spec, slot)]
    return [Column(slot, *kind) for slot, kind in zip(slots, spec.kinds.items(), strict=True)]


class Tables:
    """A database for the tables of a folder. A context manager: the database goes when it ends.

    Args:
      directory: to which the names of files are relative.

    Attributes:
      files: that were read, in the order of their indices.
      num_rows: rows of each table, with those that could not be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: list[Path] = []
        self.num_rows: dict[str, int] = {}
        self._spilled = tempfile.TemporaryDirectory(prefix="m6rec-tables-")
        self.database = duckdb.connect(
            config={
                "memory_limit": _MEMORY,
                "temp_directory": self._spilled.name,
                "threads": min(_MOST_THREADS, num_processors()),
            }
        )
        self.database.create_function("out_of_range", out_of_range, ["DOUBLE"], "VARCHAR")
        self.database.execute(_SETUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()
        self._spilled.cleanup()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a query gives."""
        return self.database.execute(query, values).fetchall()

    def create(self, table: str, columns: Sequence[Column]) -> None:
        """Makes an empty table."""
        slots = [
            f", {slot} {KINDS[kind].sql_type}, bad_{slot} VARCHAR" for slot, _, kind in columns
        ]
        self.rows(f"CREATE TABLE {table} (row BIGINT, file INTEGER, number BIGINT{''.join(slots)})")
        self.num_rows[table] = 0

    def add_file(self, path: Path) -> int:
        """The index of a file, which may be read already."""
        if path not in self.files:
            name = os.path.relpath(path, self.directory)
            self.rows("INSERT INTO files VALUES (?, ?)", [len(self.files), name])
            self.files.append(path)
        return self.files.index(path)

    def read(self, table: str, path: Path, columns: Sequence[Column]) -> None:
        """Adds the rows of a CSV or Parquet file to a table.

        Raises:
          DataError: a declared column is missing, or the file cannot be read to its end.
        """
        names = files.require_columns(path, [column.name for column in columns])
        self.load(table, path, self.source(path, names), columns)

    def load(self, table: str, path: Path, source: Source, columns: Iterable[Column]) -> None:
        """Adds the rows of a file to a table; lines that cannot be read are problems.

        Columns that the file lacks are null. Raises DataError if it cannot be read to its end.
        """
        file, first = self.add_file(path), self.num_rows[table]
        number = "file_row_number"
        slots = {"row": f"{first} + {number}", "file": str(file), "number": number}
        for slot, name, kind in columns:
            if name in source.types:
                value, bad = conversion(identifier(name), source.types[name], kind)
                slots |= {slot: value, f"bad_{slot}": bad}
        selected = ", ".join(f"{value} AS {slot}" for slot, value in slots.items())
        query = f"INSERT INTO {table} BY NAME SELECT {selected} FROM {source.sql}"
        self.num_rows[table] += self.add_rows(query, path, source)
        if source.first_line is not None:
            self._add_rejected_lines(table, file, first, source.first_line)

    def add_rows(self, query: str, path: Path, source: Source) -> int:
        """Runs a query that reads a file, and returns how many rows it added.

        Raises:
          DataError: the file is damaged.
        """
        try:
            ((count,),) = self.rows(query)
            return int(count)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            if source.first_line is None:
                raise files.parquet_damage(path, error) from error
            reason = str(error).split("\n")[0]
            raise DataError(
                f"{path} cannot be read as CSV: {reason}. Most likely a double quote is never "
                "closed, or lines end in different ways; write the file again"
            ) from error

    def source(self, path: Path, names: Sequence[str]) -> Source:
        """A CSV or Parquet file with columns of some names; raises DataError if it is damaged."""
        where = literal(glob.escape(str(path)))
        if path.suffix.lower() == ".csv":
            columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
            # Without strict mode columns too many would be dropped in silence.
            sql = f"""(SELECT row_number() OVER () - 1 AS file_row_number, * FROM read_csv({where},
              auto_detect = false, header = true, delim = ',', quote = '"', escape = '"',
              columns = {{{columns}}}, strict_mode = true, store_rejects = true))"""
            return Source(sql, dict.fromkeys(names, "VARCHAR"), 2)
        sql = f"read_parquet({where}, file_row_number = true, binary_as_string = true)"
        try:
            described = self.rows(f"DESCRIBE SELECT * FROM {sql}")
        except duckdb.Error as error:
            raise files.parquet_damage(path, error) from error
        return Source(sql, {name: sql_type for name, sql_type, *_ in described}, None)

    def _add_rejected_lines(self, table: str, file: int, first: int, first_line: int) -> None:
        """Takes what DuckDB rejected of a file that was read, and moves the rows after it on."""
        ((count,),) = self.rows(
            f"""INSERT INTO problems BY NAME
            SELECT '{table}' AS source, {first} + number AS row, {file} AS file, number,
              CASE WHEN is_utf8 THEN 'ragged_row' ELSE 'invalid_utf8' END AS kind,
              CASE WHEN is_utf8 THEN '' ELSE name END AS column_name, 'error' AS severity,
              concat(CASE WHEN is_utf8 THEN message ELSE 'invalid UTF-8' END, ' in ', shown(text),
                CASE WHEN NOT is_utf8 THEN '; save the file as UTF-8' ELSE '; a value with a comma '
                || 'stands between double quotes, and a double quote in it is written twice; most '
                || 'likely one of them is missing or was never closed' END) AS reason,
              text AS line
            FROM (
              SELECT line - {first_line} AS number, any_value(column_name) AS name,
                any_value(trim(csv_line, E' \\r\\n')) AS text, any_value(error_message) AS message,
                bool_and(error_type <> 'INVALID ENCODING') AS is_utf8
              FROM reject_errors GROUP BY line)"""
        )
        self.rows("DROP TABLE reject_errors; DROP TABLE reject_scans")
        if not count:
            return
        total = self.num_rows[table] + count - first
        self.num_rows[table] += count
        # The k-th row that was read is the k-th of all numbers but those of rejected lines.
        self.rows(
            f"""UPDATE {table} SET row = {first} + place, number = place FROM (
              SELECT row_number() OVER (ORDER BY place) - 1 AS before, place
              FROM range({total}) AS places(place)
              ANTI JOIN (FROM problems WHERE file = {file}) AS p ON p.number = place)
            WHERE file = {file} AND number = before"""
        )

    def check(self, table: str, checks: Iterable[Check]) -> None:
        """Adds the rows that checks find to the problems."""
        for check in checks:
            self.rows(
                f"""INSERT INTO problems BY NAME SELECT '{table}' AS source, t.row, t.file,
                  t.number, '{check.kind}' AS kind, {literal(check.column)} AS column_name,
                  '{check.severity}' AS severity, {check.reason} AS reason
                FROM {check.rows or f"{table} AS t"} WHERE {check.where}"""
            )

    def first_error(self, table: str) -> tuple[Path, int, str, str] | None:
        """The first row of a table that is wrong: file, number, column, reason; None: all good."""
        query = """SELECT file, number, column_name, reason FROM problems
          WHERE source = ? AND severity = 'error' ORDER BY row, rowid LIMIT 1"""
        for file, number, column, reason in self.rows(query, [table]):
            return self.files[file], number, column, reason
        return None

    def write(self, spec: DatasetSpec, folder: Path, **changed: Any) -> None:
        """Writes the rows without errors as a data set folder, which exists and is empty.

        Its `dataset.json` is `spec` with the fields that are `changed`, such as the name.
        """
        for table in TABLES:
            described = getattr(spec, table)
            selected = ", ".join(
                f"{slot} AS {identifier(name)}" for slot, name, _ in columns_of(described)
            )
            file = f"{table}.parquet"
            changed[table] = dataclasses.replace(described, file=file)
            self.rows(
                f"""COPY (SELECT {selected} FROM {table} ANTI JOIN (
                  FROM rejected WHERE source = '{table}') USING (row) ORDER BY row)
                TO {literal(str(folder / file))} (FORMAT parquet, COMPRESSION zstd)"""
            )
        dataclasses.replace(spec, **changed).save(folder)
