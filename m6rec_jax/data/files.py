"""The files of a table, Parquet or CSV, and the names of their columns.

A table may lie in several files (`"file": "events-*.parquet"`), which are read in the order of
their names.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

SUFFIXES = (".parquet", ".csv")
# What a column of a CSV file without a name is called, such as pandas' index.
UNNAMED = "unnamed"
_EXCEL_HINT = " is Excel's: save it there as 'CSV UTF-8 (comma delimited)'"


def table_files(directory: Path, table: str, file: str | None) -> list[Path]:
    """The files of a table, sorted by name.

    Raises:
      DataError: no file, both a Parquet and a CSV file, or an unknown format.
    """
    if file is None:
        found = [directory / f"{table}{suffix}" for suffix in SUFFIXES]
        found = [path for path in found if path.exists()]
        if not found:
            excel = next(iter(sorted(directory.glob(f"{table}.xls*"))), None)
            hint = "" if excel is None else f"; {excel.name}{_EXCEL_HINT}"
            raise DataError(f"{directory} has neither {table}.parquet nor {table}.csv{hint}")
        if len(found) > 1:
            raise DataError(
                f"{directory} has both {found[0].name} and {found[1].name}: remove one, or name "
                f'the one to read as "{table}": {{"file": ...}} in {SPEC_FILE}'
            )
        if found[0].is_dir():
            raise DataError(
                f"{found[0]} is a folder: name the files in it as "
                f'"{table}": {{"file": "{found[0].name}/*{found[0].suffix}"}} in {SPEC_FILE}'
            )
        return found
    if any(sign in file for sign in "*?[") and not (directory / file).is_file():
        anchor = Path(file).anchor
        base = Path(anchor) if anchor else directory
        try:
            found = sorted(path for path in base.glob(file.removeprefix(anchor)) if path.is_file())
        except ValueError as error:
            raise DataError(f"{table}.file in {SPEC_FILE}: {file!r}: {error}") from error
        if not found:
            raise DataError(f"{directory}: no file matches {file!r} ({table}.file in {SPEC_FILE})")
    else:
        found = [directory / file]
        if not found[0].is_file():
            there = directory.iterdir() if directory.is_dir() else ()
            names = sorted(path.name for path in there if path.is_file())
            raise DataError(
                f"{found[0]} does not exist ({table}.file in {SPEC_FILE})"
                f"{did_you_mean(file, names)}"
            )
    suffixes = {path.suffix.lower() for path in found}
    for suffix in suffixes:
        if suffix not in SUFFIXES:
            hint = f"; {file}{_EXCEL_HINT}" if suffix.startswith(".xls") else ""
            raise DataError(f"{directory}: {file!r} is neither .parquet nor .csv{hint}")
    if len(suffixes) > 1:
        raise DataError(f"{directory}: {file!r} matches both Parquet and CSV files; keep one kind")
    return found


def column_names(path: Path) -> list[str]:
    """Names of the columns of a Parquet or CSV file.

    Raises:
      DataError: the file is empty, damaged or cut off, its header is not UTF-8, or two columns
        share a name.
    """
    if path.suffix.lower() == ".parquet":
        names = open_parquet(path).schema_arrow.names
    else:
        names = _csv_header(path)
    folded = [name.lower() for name in names]
    for name in names:
        if folded.count(name.lower()) > 1:
            raise DataError(f"{path} has two columns named {name!r}, in any case; rename one")
    return list(names)


def require_columns(path: Path, wanted: Sequence[str]) -> list[str]:
    """The names of all columns of a file, which must have these.

    Raises:
      DataError: names the file, the missing column, the columns there and the closest match.
    """
    names = column_names(path)
    for column in wanted:
        if column not in names:
            raise DataError(missing_column_message(path, column, names))
    return names


def missing_column_message(path: Path, column: str, names: Sequence[str]) -> str:
    """The message for a column that a file lacks."""
    hint = did_you_mean(column, names)
    if len(names) == 1 and any(sign in names[0] for sign in ";\t"):
        hint = "; the header is one column: separate the columns with commas"
    return f"{path} has no column {column!r} (its columns: {', '.join(names)}){hint}"


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file; raises DataError where there is none, or not a whole one."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        raise parquet_damage(path, error) from error


def parquet_damage(path: Path, error: Exception) -> DataError:
    """The error for a Parquet file that Arrow could not read."""
    size = path.stat().st_size
    reason = " ".join(str(error).split())[:200]
    return DataError(
        f"{path} ({size} bytes) is not a whole Parquet file: it is cut off or damaged; "
        f"copy or write it again ({reason})"
    )


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            names = next(csv.reader(file), None)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except csv.Error as error:
        raise DataError(f"{path}: the header cannot be read ({error})") from error
    if not names:
        raise DataError(f"{path} is empty: the first line must name the columns")
    if any(name != name.encode(errors="ignore").decode() for name in names):
        raise DataError(f"{path}: invalid UTF-8 in the header; save the file as UTF-8")
    if names[0].lower().startswith("sep="):
        raise DataError(
            f"{path}: the first line, {','.join(names)!r}, is for Excel alone; delete it, so that "
            "the first line names the columns, and separate them with commas"
        )
    return [name or UNNAMED for name in names]
