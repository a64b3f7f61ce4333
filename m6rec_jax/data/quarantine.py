"""Writes rejected rows to one file and the remaining rows to a clean data set folder beside it."""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import glob
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.columns import arrow_schema
from m6rec_jax.data.files import SUFFIXES, RawBatch, column_names, table_files
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.values import Unreadable, python_values
from m6rec_jax.errors import DataError

_TABLES = ("users", "items", "events")
_OWN = ("quarantine_table", "quarantine_file", "quarantine_row", "quarantine_reason")
_TEXT = "quarantine_text"
# Among the provenance of a clean folder: only such a one is written over.
_CLEANED = "cleaned_from"


# Rows that are written to a Parquet file together.
_ROW_GROUP = 10_000


class Quarantine:
    """Open files for rejected rows and for the clean folder. A context manager.

    What was begun in a block that ends with an error is no data set: it has no `dataset.json`.

    Rejected rows of all tables share one file: its columns are those of all tables together, as
    text. A CSV row with the wrong number of columns is kept whole in `quarantine_text`.
    """

    def __init__(self, path: Path, spec: DatasetSpec, directory: Path) -> None:
        if path.suffix.lower() not in (".csv", ".parquet"):
            raise DataError(f"{path} must end in .csv or .parquet: rejected rows are written to it")
        self.path = path
        self.clean = clean_folder(path)
        self.spec, self._directory = spec, directory
        self._columns = [*_OWN, *_all_columns(directory, spec), _TEXT]
        self._schema = pa.schema(
            [
                (name, pa.int64() if name == "quarantine_row" else pa.string())
                for name in self._columns
            ]
        )
        self._tables: dict[str, pq.ParquetWriter] = {}
        self._csv: IO[str] | None = None
        self._parquet: pq.ParquetWriter | None = None
        self._waiting = list[dict[str, Any]]()  # to be written to it
        try:
            self._check_free(directory)
            self.clean.mkdir(parents=True, exist_ok=True)
            (self.clean / SPEC_FILE).unlink(missing_ok=True)
            if path.suffix.lower() == ".csv":
                self._csv = path.open("w", encoding="utf-8", newline="")
                csv.writer(self._csv).writerow(self._columns)
            else:
                self._parquet = pq.ParquetWriter(path, self._schema)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror})") from error
        self._schemas = {table: arrow_schema(getattr(spec, table).kinds) for table in _TABLES}
        for table in self._schemas:  # of an earlier check
            (self.clean / f"{table}.parquet").unlink(missing_ok=True)

    def _check_free(self, directory: Path) -> None:
        """Raises DataError where something that no quarantine wrote would be written over."""
        if self.clean.resolve() == directory.resolve():
            raise DataError(f"{self.clean} is the data set itself; name another file")
        for table in _TABLES:
            file = getattr(self.spec, table).file
            names = [file] if file else [f"{table}{suffix}" for suffix in SUFFIXES]
            # A `file` may be an absolute path, which `/` then takes alone.
            inside = Path(glob.escape(str(directory.resolve())))
            patterns = [str(inside / name) for name in names]
            for path in (self.path, *(self.clean / f"{own}.parquet" for own in _TABLES)):
                whole = path.resolve()
                if whole in {directory.resolve() / name for name in names} or any(
                    # Here '*' takes folders in as well, so '**' needs no meaning of its own.
                    fnmatch.fnmatchcase(str(whole), pattern)
                    if "**" in pattern
                    else whole.match(pattern)
                    for pattern in patterns
                ):
                    raise DataError(
                        f"{path} is, or would be read as, a file of the data set's {table}; name "
                        "another file, best in another folder"
                    )
        there = self.clean / SPEC_FILE
        if there.exists():
            try:
                mine = _CLEANED in DatasetSpec.load(self.clean).provenance
            except DataError:
                mine = False
            if not mine:
                raise DataError(
                    f"{self.clean} holds another data set, which the rows without errors would "
                    "write over; name another file, or remove the folder"
                )

    def keep(self, table: str, values: Mapping[str, pa.Array], good: np.ndarray) -> None:
        """Writes the good rows of a batch, given as converted columns `[n]` and mask `[n]`."""
        schema = self._schemas[table]
        arrays = [
            values.get(name, pa.nulls(len(good), schema.field(name).type)) for name in schema.names
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema).filter(pa.array(good))
        if table not in self._tables:
            self._tables[table] = pq.ParquetWriter(self.clean / f"{table}.parquet", schema)
        if batch.num_rows:
            self._tables[table].write_batch(batch)

    def reject(self, table: str, raw: RawBatch, reasons: Mapping[int, str]) -> None:
        """Writes rows of a raw batch, given as offset -> reason."""
        if not reasons:
            return
        rows = []
        taken = raw.batch.take(pa.array(list(reasons), pa.int64()))
        columns = {
            name: python_values(taken.column(index))
            for index, name in enumerate(taken.schema.names)
            # A mended file of rejected rows has them, too.
            if name not in (*_OWN, _TEXT)
        }
        for index, (offset, reason) in enumerate(reasons.items()):
            row = self._place(table, raw.path, int(raw.rows[offset]), reason)
            row |= {name: _as_text(values[index]) for name, values in columns.items()}
            rows.append(row)
        self._write(rows)

    def reject_text(self, table: str, path: Path, row: int, reason: str, text: str) -> None:
        """Writes a CSV row that could not be split into columns."""
        self._write([{**self._place(table, path, row, reason), _TEXT: text}])

    def _place(self, table: str, path: Path, row: int, reason: str) -> dict[str, Any]:
        file = os.path.relpath(path, self._directory)
        return dict(zip(_OWN, (table, file, row, reason), strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        whole = False
        try:
            with contextlib.ExitStack() as files:
                for file in (self._csv, self._parquet, *self._tables.values()):
                    if file is not None:
                        files.callback(file.close)
                if error is None:
                    self._flush()
            whole = error is None
        except OSError:
            if error is None:
                raise
        finally:
            if not whole:
                self.path.unlink(missing_ok=True)
        if not whole:
            return
        spec = self.spec
        replace(
            spec,
            users=replace(spec.users, file="users.parquet"),
            items=replace(spec.items, file="items.parquet"),
            events=replace(spec.events, file="events.parquet"),
            provenance={**spec.provenance, _CLEANED: spec.name},
        ).save(self.clean)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if self._csv is not None:
            csv.DictWriter(self._csv, self._columns, restval="").writerows(rows)
        # Each table that is written is a row group, of a kilobyte or more.
        self._waiting += rows if self._parquet is not None else []
        if len(self._waiting) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._parquet is not None and self._waiting:
            self._parquet.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting.clear()


def clean_folder(path: Path) -> Path:
    """Where the rows without errors go when the others go to a file."""
    return path.with_name(f"{path.stem}-clean")


def _all_columns(directory: Path, spec: DatasetSpec) -> list[str]:
    names: dict[str, None] = {}
    for table in _TABLES:
        # What cannot be read is reported by the check.
        with contextlib.suppress(DataError):
            for path in table_files(directory, table, getattr(spec, table).file):
                with contextlib.suppress(DataError):
                    names |= dict.fromkeys(column_names(path))
    return [name for name in names if name not in (*_OWN, _TEXT)]


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, Unreadable):
        return f"(unreadable: {value.reason})"
    if isinstance(value, list):
        odd = (bytes, Unreadable, list)
        return str([_as_text(member) if isinstance(member, odd) else member for member in value])
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    return str(value)
