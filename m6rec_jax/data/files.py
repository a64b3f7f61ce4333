"""Raw record batches of a table's files: Parquet, or CSV as bytes, with the row numbers kept.

Rows are counted from 0 (the first row below a CSV header is row 0; blank lines do not count). A
table may lie in several files (`"file": "events-*.parquet"`); they are read in the order of their
names and their rows are numbered on.
"""

from __future__ import annotations

import codecs
import csv
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

SUFFIXES = (".parquet", ".csv")
DEFAULT_BATCH_SIZE = 65_536
_EXCEL_HINT = " is Excel's: save it there as 'CSV UTF-8 (comma delimited)'"
# A CSV row must fit into one block.
_CSV_BLOCK_BYTES = 8 << 20

RaggedRow = Callable[[Path, int, int, int, str], None]
"""Called with (file, row, columns expected, columns found, text of the row)."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Some rows of one file, as they are.

    Attributes:
      path: the file.
      first_row: rows of the table in the files before this one.
      rows: row numbers inside this file, `[n]` int64.
      batch: the columns; CSV columns are bytes.
    """

    path: Path
    first_row: int
    rows: np.ndarray
    batch: pa.RecordBatch


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
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path} has two columns named {name!r}; rename one")
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


def num_rows(path: Path) -> int | None:
    """Rows of a Parquet file from its footer; None for CSV."""
    if path.suffix.lower() != ".parquet":
        return None
    return int(open_parquet(path).metadata.num_rows)


def raw_batches(
    paths: Sequence[Path],
    columns: Sequence[str] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_ragged: RaggedRow | None = None,
) -> Iterator[RawBatch]:
    """Streams the rows of a table's files in order, at most `batch_size` at a time.

    Args:
      paths: the files, all Parquet or all CSV.
      columns: the columns to read, in this order; None for all of the file.
      on_ragged: called for CSV rows with too many or too few columns, which are then left out;
        without it such a row is an error.

    Raises:
      DataError: a missing column, a damaged file, a CSV row with the wrong number of columns.
    """
    first_row = 0
    for path in paths:
        names = require_columns(path, columns or ())
        wanted = list(columns) if columns is not None else names
        if path.suffix.lower() == ".parquet":
            batches = _parquet_batches(path, first_row, wanted, batch_size)
        else:
            batches = _csv_batches(path, first_row, names, wanted, batch_size, on_ragged)
        rows = 0
        for batch in batches:
            if len(batch.rows):
                rows = int(batch.rows[-1]) + 1
                yield batch
        first_row += rows


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file; raises DataError where there is none, or not a whole one."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        raise parquet_damage(path, error) from error


def takeable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Views of texts and bytes as these themselves: Arrow cannot pick rows of views."""
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    for index, field in enumerate(batch.schema):
        if field.type in plain:
            column = batch.column(index).cast(plain[field.type])
            batch = batch.set_column(index, field.with_type(column.type), column)
    return batch


def parquet_damage(path: Path, error: Exception) -> DataError:
    """The error for a Parquet file that Arrow could not read."""
    size = path.stat().st_size
    reason = " ".join(str(error).split())[:200]
    return DataError(
        f"{path} ({size} bytes) is not a whole Parquet file: it is cut off or damaged; "
        f"copy or write it again ({reason})"
    )


def _parquet_batches(
    path: Path, first_row: int, columns: list[str], batch_size: int
) -> Iterator[RawBatch]:
    row = 0
    with open_parquet(path) as file:
        try:
            # One row group after the other, so that all before a damaged one are read.
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size, row_groups=[group], columns=columns):
                    rows = np.arange(row, row + batch.num_rows, dtype=np.int64)
                    # Parquet gives the columns in the file's order, whatever the order asked for.
                    yield RawBatch(path, first_row, rows, takeable(batch.select(columns)))
                    row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise parquet_damage(path, error) from error


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), None)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        # The decoder reads ahead of the header; an error further on belongs to its row.
        names = _header_of_bytes(path)
        if names is None:
            raise DataError(
                f"{path}: invalid UTF-8 in the header (byte 0x{error.object[error.start]:02x}); "
                "save the file as UTF-8"
            ) from error
    except csv.Error as error:
        raise DataError(f"{path}: the header cannot be read ({error})") from error
    if not names:
        raise DataError(f"{path} is empty: the first line must name the columns")
    if names[0].lower().startswith("sep="):
        raise DataError(
            f"{path}: the first line, {','.join(names)!r}, is for Excel alone; delete it, so that "
            "the first line names the columns, and separate them with commas"
        )
    return names


def _header_of_bytes(path: Path) -> list[str] | None:
    with path.open("rb") as file:
        line = file.readline()
    try:
        return next(csv.reader([line.decode("utf-8-sig")]), None)
    except UnicodeDecodeError:
        return None


def _csv_batches(
    path: Path,
    first_row: int,
    names: list[str],
    columns: list[str],
    batch_size: int,
    on_ragged: RaggedRow | None,
) -> Iterator[RawBatch]:
    # Arrow hands bad rows over as strings and loses those that are not UTF-8. Latin-1 has a
    # character for every byte, so a file with invalid UTF-8 is read as that and turned back.
    encoding = "utf-8" if _is_utf8(path) else "latin-1"
    arrow_names = {name: name.encode().decode(encoding) for name in names}
    ragged: list[int] = []
    errors: list[DataError] = []

    def invalid_row(row: pyarrow.csv.InvalidRow) -> str:
        number = row.number - 2  # Arrow counts from 1, the header included
        ragged.append(number)
        text = row.text.encode(encoding).decode("utf-8", errors="backslashreplace")
        if on_ragged is None:
            errors.append(
                DataError(
                    f"{path}, row {number}: {row.actual_columns} columns, not "
                    f"{row.expected_columns}: {text[:80]!r}; {_ragged_advice(text)}"
                )
            )
            return "error"
        on_ragged(path, number, row.expected_columns, row.actual_columns, text)
        return "skip"

    watched: list[weakref.ref[Any]] = [weakref.ref(invalid_row)]
    reader = None
    try:
        with path.open("rb") as file:
            watched.append(weakref.ref(file))
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            reader = pyarrow.csv.open_csv(
                file,
                # Threads would lose the row numbers of bad rows.
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=False, block_size=_CSV_BLOCK_BYTES, encoding=encoding
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    newlines_in_values=True, invalid_row_handler=invalid_row
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(arrow_names.values(), pa.binary()),
                    include_columns=[arrow_names[column] for column in columns],
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            given = 0
            for whole in reader:
                arrays = [_original_bytes(column, encoding) for column in whole.columns]
                whole = pa.RecordBatch.from_arrays(arrays, names=columns)
                # Blocks are parsed ahead of being given out: the list may know rows further on.
                for start in range(0, whole.num_rows, batch_size):
                    batch = whole.slice(start, batch_size)
                    rows = _row_numbers(given, batch.num_rows, ragged)
                    given += batch.num_rows
                    yield RawBatch(path, first_row, rows, batch)
    except pa.ArrowException as error:
        if errors:
            raise errors[0] from error
        if "straddling" in str(error):
            raise DataError(
                f"{path}: a row is longer than {_CSV_BLOCK_BYTES:,} bytes; most likely a double "
                "quote is never closed"
            ) from error
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    finally:
        del invalid_row
        file = reader = None  # type: ignore[assignment]
        _wait_until_gone(watched)


def _wait_until_gone(watched: Sequence[weakref.ref[Any]]) -> None:
    """Returns once Arrow's threads have let go of some objects, but after a second at the latest.

    Python ends by ending threads that wait for it, and a thread that is about to free an object
    cannot be ended: the process would abort.
    """
    for _ in range(1_000):
        if all(reference() is None for reference in watched):
            return
        time.sleep(0.001)


def _ragged_advice(text: str) -> str:
    if "\n" in text:
        return "most likely a double quote is never closed"
    return "put values that hold a comma between double quotes"


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(1 << 20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _original_bytes(column: pa.Array, encoding: str) -> pa.Array:
    if encoding == "utf-8" or pc.all(pc.string_is_ascii(column.cast(pa.string()))).as_py() in (
        True,
        None,
    ):
        return column
    values = column.cast(pa.string()).to_pylist()
    return pa.array([v if v is None else v.encode(encoding) for v in values], pa.binary())


def _row_numbers(given: int, count: int, ragged: Sequence[int]) -> np.ndarray:
    """Row numbers `[count]` of the rows that follow `given` good ones, past the ragged rows."""
    good = np.arange(given, given + count, dtype=np.int64)
    # The k-th ragged row comes after (its row number - k) good ones.
    good_before = np.asarray(ragged, np.int64) - np.arange(len(ragged))
    return good + np.searchsorted(good_before, good, side="right")
