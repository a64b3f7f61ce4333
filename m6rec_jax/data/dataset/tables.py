"""The tables of a data set in DuckDB: read once, converted, checked by queries, and written.

Rows are counted from 0 (the first row below a CSV header is row 0). A table in the database has the
columns

    row      number over all of its files; below 0 for a line that cannot be read
    file     index of the file in `files`
    number   number inside this file

and, for each declared column, a *slot* with its value, null where it is missing or does not fit,
and `bad_<slot>` with the text of a value that does not fit. Slots of events are `user`, `item`,
`time`, `value` and `part`; those of users and items are `id`, then `c0`, `c1`, ... The table
`problems` has a row for each row and problem; its `line` is a line of a CSV file that cannot be
read at all. The view `good_<table>` has the rows without errors. DuckDB spills to `TMPDIR` what
does not fit into its memory.
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
CREATE MACRO shown(x) AS
  concat('''', CASE WHEN length(x) > 60 THEN concat(left(x, 57), '...') ELSE x END, '''');
"""
_BAD_LINE = literal(
    "; save the file as UTF-8. In CSV a value with a comma stands between double quotes, and a "
    "double quote in it is written twice; most likely one is missing or was never closed"
)
_CSV, _TABS = (
    r"""delim = ',', quote = '"', escape = '"'""",
    r"delim = E'\t', quote = '', escape = ''",
)


def text_rows(path: Path, options: str) -> str:
    """SQL for the rows of a text file, with further options of DuckDB's `read_csv`."""
    # DuckDB's own limit of 2 MB is too low for the sequence of a user, or a long text.
    return f"""read_csv({literal(glob.escape(str(path)))}, auto_detect = false,
      max_line_size = 16777216, buffer_size = 67108864, {options})"""


class Source(NamedTuple):
    """A file as SQL has it: a relation, the type of each column as DuckDB names it, and what rows
    are called by inside the file, from 0.
    """

    sql: str
    types: Mapping[str, str]
    number: str = "row_number() OVER () - 1"


def columns_of(spec: TableSpec | EventsSpec) -> list[Column]:
    """The declared columns of a table."""
    slots = ["id", *(f"c{place}" for place in range(len(spec.kinds) - 1))]
    if isinstance(spec, EventsSpec):
        slots = [slot for slot in ("user", "item", "time", "value", "part") if getattr(spec, slot)]
    return [Column(slot, *kind) for slot, kind in zip(slots, spec.kinds.items(), strict=True)]


class Tables:
    """A database for the tables of a folder. A context manager: the database goes when it ends.

    Names of `files`, in the order of their indices, are relative to `directory`. By table,
    `columns` are the declared ones, `num_rows` counts all rows, with those that could not be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: list[Path] = []
        self.columns: dict[str, Sequence[Column]] = {}
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
        self.rows(
            f"""CREATE TABLE {table} (row BIGINT, file INTEGER, number BIGINT{"".join(slots)});
            CREATE VIEW good_{table} AS FROM {table} ANTI JOIN (
              FROM problems WHERE source = '{table}' AND severity = 'error') USING (row)"""
        )
        self.columns[table], self.num_rows[table] = columns, 0

    def add_file(self, path: Path) -> int:
        """The index of a file, which may be read already."""
        if path not in self.files:
            name = os.path.relpath(path, self.directory)
            self.rows("INSERT INTO files VALUES (?, ?)", [len(self.files), name])
            self.files.append(path)
        return self.files.index(path)

    def read(self, table: str, columns: Sequence[Column], paths: Sequence[Path]) -> None:
        """Makes a table of the rows of CSV or Parquet files, of whole files alone.

        A file that is damaged or lacks a declared column is a problem of the kind 'bad_file', and
        the last file where none has a row.
        """
        self.create(table, columns)
        is_bad = False
        for path in paths:
            try:
                names = files.require_columns(path, [column.name for column in columns])
                self.insert(table, path, self.source(path, names))
            except DataError as error:
                self.add_error("bad_file", table, path, error)
                is_bad = True
        if paths and not self.num_rows[table] and not is_bad:
            reason = f"{path} has no rows below the line that names the columns; add some"
            self.add_error("bad_file", table, path, reason)

    def add_error(
        self, kind: str, table: str, path: Path, reason: object, column: str = ""
    ) -> None:
        """Adds an error of a whole file or column to the problems."""
        names = "source, file, kind, column_name, severity, reason"
        values = [table, self.add_file(path), kind, column, "error", str(reason)]
        self.rows(f"INSERT INTO problems ({names}) VALUES (?, ?, ?, ?, ?, ?)", values)

    def insert(self, table: str, path: Path, source: Source) -> None:
        """Adds the rows of a file to a table; lines that cannot be read are problems.

        Columns that the file lacks are null. Raises DataError if it cannot be read to its end.
        """
        file, first = self.add_file(path), self.num_rows[table]
        slots = {"row": f"{first} + row_number() OVER () - 1", "file": str(file)}
        slots["number"] = source.number
        for slot, name, kind in self.columns[table]:
            if name in source.types:
                value, bad = conversion(identifier(name), source.types[name], kind)
                slots |= {slot: value, f"bad_{slot}": bad}
        selected = ", ".join(f"{value} AS {slot}" for slot, value in slots.items())
        query = f"INSERT INTO {table} BY NAME SELECT {selected} FROM {source.sql}"
        self.num_rows[table] += self.copied(query, path)
        if self.rows("FROM duckdb_tables() WHERE table_name = 'reject_errors'"):
            self._add_rejected_lines(table, file, first)

    def copied(self, query: str, path: Path) -> int:
        """Runs a query that copies rows of a file, and returns how many; raises DataError for a
        damaged one.
        """
        try:
            ((count,),) = self.rows(query)
            return int(count)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            if path.suffix.lower() == ".parquet":
                raise files.parquet_damage(path, error) from error
            reason = " ".join(str(error).split("\n")[:3])
            raise DataError(
                f"{path} cannot be read as text in UTF-8: {reason}. Most likely a double quote is "
                "never closed, or lines end in different ways; write the file again"
            ) from error

    def source(self, path: Path, names: Sequence[str]) -> Source:
        """A Parquet file, a CSV file, or else a text with tabs between fields and no quotes.

        `names` are what its columns are called here, in their order in a text file. Raises
        DataError where it is damaged.
        """
        if path.suffix.lower() != ".parquet":
            columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
            signs = _CSV if path.suffix.lower() == ".csv" else _TABS
            # Without strict mode columns too many would be dropped in silence.
            options = f"header = true, {signs}, columns = {{{columns}}}, strict_mode = true"
            sql = text_rows(path, f"{options}, store_rejects = true")
            return Source(sql, dict.fromkeys(names, "VARCHAR"))
        sql = f"read_parquet({literal(glob.escape(str(path)))}, binary_as_string = true)"
        try:
            described = self.rows(f"DESCRIBE SELECT * FROM {sql}")
        except duckdb.Error as error:
            raise files.parquet_damage(path, error) from error
        return Source(sql, {name: sql_type for name, sql_type, *_ in described})

    def _add_rejected_lines(self, table: str, file: int, first: int) -> None:
        """Takes lines that DuckDB rejected of a file, and counts them among its rows."""
        ((count,),) = self.rows(
            f"""INSERT INTO problems BY NAME
            SELECT '{table}' AS source, -{file << 40} - line::BIGINT AS row, {file} AS file,
              line - 2 AS number, 'bad_line' AS kind, '' AS column_name, 'error' AS severity,
              concat(any_value(error_message), ' in ', shown(any_value(csv_line)), {_BAD_LINE})
                AS reason,
              any_value(trim(csv_line, E' \\r\\n')) AS line
            FROM reject_errors GROUP BY reject_errors.line"""
        )
        self.rows("DROP TABLE reject_errors; DROP TABLE reject_scans")
        # The k-th row that was read is the k-th of all numbers but those of rejected lines.
        self.rows(
            f"""UPDATE {table} SET number = place FROM (
              SELECT row_number() OVER (ORDER BY place) - 1 AS before, place
              FROM range({self.num_rows[table] + count - first}) AS places(place)
              ANTI JOIN (FROM problems WHERE file = {file}) AS p ON p.number = place)
            WHERE file = {file} AND number = before"""
        )
        self.num_rows[table] += count

    def check(self, table: str, checks: Iterable[Check]) -> None:
        """Adds the rows that checks find to the problems."""
        for check in checks:
            self.rows(
                f"""INSERT INTO problems BY NAME SELECT '{table}' AS source, t.row, t.file,
                  t.number, '{check.kind}' AS kind, {literal(check.column)} AS column_name,
                  '{check.severity}' AS severity, {check.reason} AS reason
                FROM {check.rows or f"{table} AS t"} WHERE {check.where}"""
            )

    def write(self, spec: DatasetSpec, folder: Path, **changed: Any) -> None:
        """Writes the rows without errors as a data set folder, which exists and is empty.

        Its `dataset.json` is `spec` with the fields that are `changed`, such as the name.
        """
        for table in TABLES:
            changed[table] = dataclasses.replace(getattr(spec, table), file=f"{table}.parquet")
            self.write_table(table, folder / f"{table}.parquet")
        dataclasses.replace(spec, **changed).save(folder)

    def write_table(self, table: str, path: Path) -> None:
        """Writes the declared columns of the rows without errors to a Parquet file."""
        selected = ", ".join(
            f"{slot} AS {identifier(name)}" for slot, name, _ in self.columns[table]
        )
        self.rows(
            f"""COPY (SELECT {selected} FROM good_{table} ORDER BY row)
            TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)"""
        )
