"""The tables of a data set in DuckDB: read once, converted, and checked by queries.

Rows are counted from 0 (the first row below a CSV header is row 0). A table in the database has the
columns

    row      number over all of its files
    file     index of the file in `files`
    number   number inside this file
    ordinal  number inside this file, if lines that cannot be read are not counted

and, for each declared column, a *slot* with its value, null where it is missing or does not fit,
and `bad_<slot>` with the text of a value that does not fit. Slots of events are `user`, `item`,
`time`, `value` and `part`; those of users and items are `id`, then `c0`, `c1`, ... The table
`problems` has a row for each row and problem, with lines of CSV files that cannot be read at all.
DuckDB spills to `TMPDIR` what does not fit into its memory.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import duckdb

from m6rec_jax.data import files
from m6rec_jax.data.checks import KINDS, Check, Column
from m6rec_jax.data.columns import SQL_TYPES, conversion, identifier, literal
from m6rec_jax.data.schema import EventsSpec, TableSpec
from m6rec_jax.data.values import out_of_range
from m6rec_jax.errors import DataError
from m6rec_jax.io.processors import num_processors

_MEMORY = "512MB"
# Each thread takes some of the memory.
_MOST_THREADS = 4
_SETUP = """
SET TimeZone = 'UTC';
CREATE TABLE files (file INTEGER, name VARCHAR);
CREATE TABLE problems (
  source VARCHAR, row BIGINT, file INTEGER, number BIGINT, place INTEGER, kind VARCHAR,
  column_name VARCHAR, is_error BOOLEAN, reason VARCHAR);
CREATE TABLE rejected_lines (source VARCHAR, row BIGINT, line VARCHAR);
CREATE VIEW rejected AS SELECT DISTINCT source, row FROM problems WHERE is_error;
CREATE VIEW rejected_rows AS SELECT row FROM rejected WHERE source = 'events';
CREATE MACRO place(number) AS concat('row ', number);
CREATE MACRO shown(x) AS
  concat('''', CASE WHEN length(x) > 60 THEN concat(left(x, 57), '...') ELSE x END, '''');
"""

# Lines that were rejected, in the order of the file, each after `before` others.
_LINES = r"""
CREATE OR REPLACE TABLE lines AS
SELECT line, line_number - {first_line} AS number,
  row_number() OVER (ORDER BY line_number) - 1 AS before,
  CASE WHEN is_utf8 THEN 'ragged_row' ELSE 'invalid_utf8' END AS kind,
  CASE WHEN is_utf8 THEN '' ELSE name END AS column_name,
  concat(CASE WHEN is_utf8 THEN message ELSE 'invalid UTF-8' END, ' in ', shown(line),
    CASE WHEN NOT is_utf8 THEN '; save the file as UTF-8'
      WHEN is_quoted OR contains(line, chr(10))
      THEN '; most likely a double quote is never closed, or stands in a text: write it twice there'
      ELSE '; put values that hold a comma between double quotes' END) AS reason
FROM (
  SELECT line AS line_number, any_value(trim(csv_line, E' \r\n')) AS line,
    any_value(error_message) AS message, any_value(column_name) AS name,
    bool_or(error_type = 'UNQUOTED VALUE') AS is_quoted,
    bool_and(error_type <> 'INVALID ENCODING') AS is_utf8
  FROM reject_errors GROUP BY line_number)
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
    slots: list[str]
    if isinstance(spec, EventsSpec):
        slots = [slot for slot in ("user", "item", "time", "value", "part") if getattr(spec, slot)]
    else:
        slots = ["id", *(f"c{place}" for place in range(len(spec.columns)))]
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
        self._num_checks = 0
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

    def name(self, path: Path) -> str:
        """What a file is called: files of several folders may share a name."""
        return os.path.relpath(path, self.directory)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a query gives."""
        return self.database.execute(query, values).fetchall()

    def create(self, table: str, columns: Sequence[Column]) -> None:
        """Makes an empty table."""
        slots = "".join(
            f", {slot} {SQL_TYPES[kind]}, bad_{slot} VARCHAR" for slot, _, kind in columns
        )
        self.rows(
            f"CREATE TABLE {table} (row BIGINT, file INTEGER, number BIGINT, ordinal BIGINT{slots})"
        )
        self.num_rows[table] = 0

    def load(self, table: str, path: Path, source: Source, columns: Iterable[Column]) -> None:
        """Adds the rows of a file to a table; lines that cannot be read are problems.

        Args:
          table: that `create` made.
          path: the file.
          source: the file, as `source` or a reader of another format has it.
          columns: declared ones; those that the file lacks are null.

        Raises:
          DataError: the file cannot be read to its end.
        """
        file, first = len(self.files), self.num_rows[table]
        self.files.append(path)
        self.rows("INSERT INTO files VALUES (?, ?)", [file, self.name(path)])
        try:
            slots = {"row": f"{first} + file_row_number", "file": str(file)}
            slots |= dict.fromkeys(("number", "ordinal"), "file_row_number")
            for slot, name, kind in columns:
                if name in source.types:
                    value, bad = conversion(identifier(name), source.types[name], kind)
                    slots |= {slot: value, f"bad_{slot}": bad}
            selected = ", ".join(f"{value} AS {slot}" for slot, value in slots.items())
            ((count,),) = self.rows(
                f"INSERT INTO {table} BY NAME SELECT {selected} FROM {source.sql}"
            )
            self.num_rows[table] += count
            if source.first_line is not None:
                self._add_rejected_lines(table, file, first, source.first_line)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            if source.first_line is not None:
                reason = str(error).split("\n")[0]
                raise DataError(
                    f"{path} cannot be read as CSV: {reason}. Most likely a double quote is never "
                    "closed, or lines end in different ways; write the file again"
                ) from error
            raise files.parquet_damage(path, error) from error

    def source(self, path: Path, names: Sequence[str]) -> Source:
        """A CSV or Parquet file with columns of some names.

        Raises:
          DataError: a damaged Parquet file.
        """
        where = literal(glob.escape(str(path)))
        if path.suffix.lower() == ".csv":
            types = dict.fromkeys(names, "VARCHAR")
            columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
            # Without strict mode columns too many would be dropped in silence.
            read = f"""(SELECT row_number() OVER () - 1 AS file_row_number, * FROM read_csv({where},
              auto_detect = false, header = true, delim = ',', quote = '"', escape = '"',
              columns = {{{columns}}}, strict_mode = true, store_rejects = true))"""
            return Source(read, types, 2)
        read = f"read_parquet({where}, file_row_number = true, binary_as_string = true)"
        try:
            described = self.rows(f"DESCRIBE SELECT * FROM {read}")
        except duckdb.Error as error:
            raise files.parquet_damage(path, error) from error
        return Source(read, {name: sql_type for name, sql_type, *_ in described}, None)

    def _add_rejected_lines(self, table: str, file: int, first: int, first_line: int) -> None:
        """Takes what DuckDB rejected of a file that was read, and moves the rows after it on."""
        self.rows(_LINES.format(first_line=first_line))
        ((count,),) = self.rows("SELECT count(*) FROM lines")
        self.rows("DROP TABLE reject_errors; DROP TABLE reject_scans")
        if not count:
            return
        self.num_rows[table] += count
        self.rows(
            f"""UPDATE {table} SET number = moved, row = {first} + moved FROM (
              SELECT t.row AS old, t.number + s.shift AS moved
              FROM (FROM {table} WHERE file = {file}) AS t ASOF JOIN (
                SELECT number - before AS good_before, max(before) + 1 AS shift
                FROM lines GROUP BY ALL) AS s ON t.number >= s.good_before)
            WHERE row = old AND file = {file}"""
        )
        self.rows(
            f"""INSERT INTO problems SELECT '{table}', {first} + number, {file}, number, 0, kind,
              column_name, true, reason FROM lines"""
        )
        self.rows(f"INSERT INTO rejected_lines SELECT '{table}', {first} + number, line FROM lines")

    def check(self, table: str, checks: Iterable[Check]) -> None:
        """Adds the rows that checks find to the problems."""
        for check in checks:
            self._num_checks += 1
            is_error = KINDS[check.kind][0] == "error"
            self.rows(
                f"""INSERT INTO problems SELECT '{table}', t.row, t.file, t.number,
                  {self._num_checks}, '{check.kind}', {literal(check.column)}, {is_error},
                  {check.reason}
                FROM {check.rows or f"{table} AS t"} WHERE {check.where}"""
            )

    def first_error(self, table: str) -> tuple[Path, int, str, str] | None:
        """The first row of a table that is wrong: file, number, column, reason; None: all good."""
        errors = self.rows(
            """SELECT file, number, column_name, reason FROM problems
            WHERE source = ? AND is_error ORDER BY row, place LIMIT 1""",
            [table],
        )
        for file, number, column, reason in errors:
            return self.files[file], number, column, reason
        return None
