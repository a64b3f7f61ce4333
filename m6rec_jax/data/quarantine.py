"""Writes rejected rows to one file and the remaining rows to a clean data set folder beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb

from m6rec_jax.data.columns import identifier, literal
from m6rec_jax.data.files import SUFFIXES, column_names
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.tables import Tables, columns_of
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file

# Columns of the file before those of the rejected rows; `_TEXT` holds a line that has no columns.
_FIRST = ("quarantine_table", "quarantine_file", "quarantine_row", "quarantine_reason")
_TEXT = "quarantine_text"
# Among the provenance of a clean folder: only such a one is written over.
_CLEANED = "cleaned_from"


class Quarantine:
    """Where rejected rows and the clean folder are written.

    Rejected rows of all tables share one file: its columns are those of all tables together, as
    text. A line of a CSV file that cannot be read is kept whole in `quarantine_text`.

    Args:
      path: the file of rejected rows.
      spec: of the data set.
      directory: of the data set.

    Raises:
      DataError: the file has another ending, or is not to be written there.
    """

    def __init__(self, path: Path, spec: DatasetSpec, directory: Path) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} must end in .csv or .parquet: rejected rows are written to it")
        self.path, self.clean, self.spec = path, clean_folder(path), spec
        inside = directory.resolve()
        if inside in path.resolve().parents or self.clean.resolve() == inside:
            raise DataError(
                f"{path}: rejected rows and {self.clean.name} beside them may not lie in the data "
                f"set {directory}, which could read them; name a file in another folder"
            )
        if (self.clean / SPEC_FILE).exists():
            try:
                is_clean = _CLEANED in DatasetSpec.load(self.clean).provenance
            except DataError:
                is_clean = False
            if not is_clean:
                raise DataError(
                    f"{self.clean} holds another data set, which the rows without errors would "
                    "write over; name another file, or remove the folder"
                )

    def write(self, tables: Tables) -> None:
        """Writes what was found; the clean folder has a `dataset.json` once it is whole.

        Raises:
          DataError: the files cannot be written.
        """
        try:
            self.clean.mkdir(parents=True, exist_ok=True)
            (self.clean / SPEC_FILE).unlink(missing_ok=True)
            self._write_rejected(tables)
            self._write_clean(tables)
        except (OSError, duckdb.IOException) as error:
            self.path.unlink(missing_ok=True)
            raise DataError(f"{self.path} and {self.clean} cannot be written ({error})") from error

    def _write_rejected(self, tables: Tables) -> None:
        taken = (*_FIRST, _TEXT)
        names = {
            path: [name for name in column_names(path) if name.lower() not in taken]
            for path in tables.files
        }
        columns = {name.lower(): name for of_file in names.values() for name in of_file}
        texts = ", ".join(f"{identifier(name)} VARCHAR" for name in (*columns.values(), _TEXT))
        first = ", ".join(f"{name} VARCHAR" for name in _FIRST)
        tables.rows(f"CREATE TABLE quarantine ({first}, {texts})")
        tables.rows("ALTER TABLE quarantine ALTER quarantine_row TYPE BIGINT")
        tables.rows(
            """CREATE TABLE reasons AS SELECT source, row, file, number,
              string_agg(CASE WHEN kind = 'ragged_row' THEN reason ELSE
                concat(column_name, ': ', reason) END, '; ' ORDER BY place) AS reason
            FROM problems WHERE is_error GROUP BY source, row, file, number"""
        )
        first = (
            "r.source AS quarantine_table, f.name AS quarantine_file, "
            "r.number AS quarantine_row, r.reason AS quarantine_reason"
        )
        tables.rows(
            f"""INSERT INTO quarantine BY NAME SELECT {first}, l.line AS {_TEXT}
            FROM reasons AS r JOIN files AS f USING (file)
            JOIN rejected_lines AS l ON l.source = r.source AND l.row = r.row"""
        )
        for table, file in sorted(tables.rows("SELECT DISTINCT source, file FROM reasons")):
            path = tables.files[file]
            source = tables.source(path, column_names(path))
            texts = "".join(
                f", CAST(s.{identifier(name)} AS VARCHAR) AS {identifier(name)}"
                for name in names[path]
            )
            tables.rows(
                f"""INSERT INTO quarantine BY NAME SELECT {first}{texts}
                FROM (FROM reasons WHERE file = {file}) AS r JOIN files AS f USING (file)
                JOIN {table} AS t USING (row)
                JOIN {source.sql} AS s ON s.file_row_number = t.ordinal"""
            )
        with atomic_file(self.path) as scratch:
            order = "quarantine_table DESC, quarantine_file, quarantine_row"
            to = f"{literal(str(scratch))} (FORMAT {self.path.suffix[1:]})"
            tables.rows(f"COPY (FROM quarantine ORDER BY {order}) TO {to}")

    def _write_clean(self, tables: Tables) -> None:
        for table in tables.num_rows:
            selected = ", ".join(
                f"{slot} AS {identifier(name)}"
                for slot, name, _ in columns_of(getattr(self.spec, table))
            )
            path = self.clean / f"{table}.parquet"
            tables.rows(
                f"""COPY (SELECT {selected} FROM {table} ANTI JOIN (
                  FROM rejected WHERE source = '{table}') USING (row) ORDER BY row)
                TO {literal(str(path))} (FORMAT parquet)"""
            )
        spec = self.spec
        replace(
            spec,
            users=replace(spec.users, file="users.parquet"),
            items=replace(spec.items, file="items.parquet"),
            events=replace(spec.events, file="events.parquet"),
            provenance={**spec.provenance, _CLEANED: spec.name},
        ).save(self.clean)


def clean_folder(path: Path) -> Path:
    """Where the rows without errors go when the others go to a file."""
    return path.with_name(f"{path.stem}-clean")
