"""The files of a table, Parquet or CSV, and the names of their columns.

A table may lie in several files (`"file": "events-*.parquet"`), which are read in the order of
their names.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.dataset.schema import SPEC_FILE
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

SUFFIXES = (".parquet", ".csv")
# What a column of a CSV file without a name is called, such as pandas' index.
UNNAMED = "unnamed"


def table_files(directory: Path, table: str, file: str | None) -> list[Path]:
    """The files of a table, sorted by name; without a name or pattern, `<table>.parquet` or `.csv`.

    Raises:
      DataError: no file, both Parquet and CSV files, or another format.
    """
    names = [file or ""]
    if file is None:
        names = [f"{table}{suffix}" for suffix in SUFFIXES]
    elif not (directory / file).is_file():
        names = glob.glob(file, root_dir=directory, recursive=True)
    paths = sorted(path for name in names if (path := directory / name).is_file())
    wanted = file or " or ".join(names)
    where = f'name the files as "{table}": {{"file": ...}} in {SPEC_FILE}'
    if not paths:
        there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        raise DataError(
            f"{directory} has no file {wanted} (there: {', '.join(there[:20])})"
            f"{did_you_mean(wanted, there)}; {where}"
        )
    suffixes = sorted({path.suffix.lower() for path in paths})
    if not {*suffixes} <= {*SUFFIXES}:
        raise DataError(
            f"{paths[0]}: {wanted!r} is neither .parquet nor .csv; save it as CSV in UTF-8 with "
            "commas between values"
        )
    if len(suffixes) > 1:
        raise DataError(f"{directory} has {wanted} as Parquet and as CSV; remove one, or {where}")
    return paths


def column_names(path: Path) -> list[str]:
    """Names of the columns of a file; raises DataError if it is damaged, or two share a name."""
    if path.suffix.lower() == ".parquet":
        names = list(open_parquet(path).schema_arrow.names)
    else:
        names = _header(path)
    folded = [name.lower() for name in names]
    for name in names:
        if folded.count(name.lower()) > 1:
            raise DataError(f"{path} has two columns named {name!r}, in any case; rename one")
    return names


def require_columns(path: Path, wanted: Sequence[str]) -> list[str]:
    """The names of all columns of a file; raises DataError if one that is wanted is missing."""
    names = column_names(path)
    for column in wanted:
        if column not in names:
            raise DataError(
                f"{path} has no column {column!r} (its columns: {', '.join(names)})"
                f"{did_you_mean(column, names)}; the first line of a CSV file names the columns, "
                "with commas between them"
            )
    return names


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file; raises DataError where there is none, or not a whole one."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        raise parquet_damage(path, error) from error


def parquet_damage(path: Path, error: Exception) -> DataError:
    """The error for a Parquet file that could not be read."""
    reason = " ".join(str(error).split())[:200]
    return DataError(
        f"{path} ({path.stat().st_size} bytes) is not a whole Parquet file: it is cut off or "
        f"damaged; copy or write it again ({reason})"
    )


def _header(path: Path) -> list[str]:
    """The fields of the first line of a text, with commas between them in CSV, else with tabs."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file)
            if path.suffix.lower() != ".csv":
                rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = next(rows, None)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except csv.Error as error:
        raise DataError(f"{path}: the header cannot be read ({error})") from error
    if not names or not "".join(names).strip():
        raise DataError(f"{path}: its first line is empty; it must name the columns")
    if any("\ufffd" in name for name in names):
        raise DataError(f"{path}: invalid UTF-8 in the header; save the file as UTF-8")
    return [name or UNNAMED for name in names]
