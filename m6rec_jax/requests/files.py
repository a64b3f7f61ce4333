"""Files of requests, read in chunks of bounded memory, and files of the same rows with results.

Two formats, chosen by the ending: JSON lines (`.jsonl`) and Parquet (`.parquet`). Results have the
format of the requests; a row keeps what it had, to the byte in JSON lines. Rows are counted from 0;
in JSON lines that is the number of the line, and blank lines are no rows.

A row that is no object at all (not JSON, not UTF-8) is handed on with the reason, not raised.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.files import column_names, open_parquet, parquet_damage, plain_batch
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.requests.request import RejectedRow

# A longer line is no request: it would have to fit in memory.
MAX_LINE_BYTES = 16 << 20
# A chunk of long lines ends before it has all its rows.
_MAX_CHUNK_BYTES = 64 << 20
_MAX_SHOWN = 10_000


class Position(NamedTuple):
    """Where a chunk begins: number of its first row, and (JSON lines) bytes before it."""

    row: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of a file that are about as long; `index` from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads `INDEX/COUNT`.

        Raises:
          ConfigError: it says something else.
        """
        numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        shard = cls(*map(int, numbers.groups())) if numbers else None
        if shard is None or shard.index >= shard.count:
            raise ConfigError(
                f"--shard {text}: write INDEX/COUNT with an index from 0 up to COUNT - 1, for "
                "instance 0/8 to 7/8"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, path: Path) -> Path:
        """The path of this part of an output: `scores-00003-of-00008.jsonl`."""
        return path.with_name(f"{path.stem}-{self.index:05}-of-{self.count:05}{path.suffix}")


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row of a file.

    Attributes:
      number: from 0.
      values, problem: the object; None where it could not be read, and why not.
      raw: bytes of a line; in Parquet what can be shown of a row that could not be read, else None.
    """

    number: int
    values: Mapping[str, Any] | None
    problem: RejectedRow | None = None
    raw: bytes | None = None

    def shown(self) -> str:
        """The row for people, as far as it can be shown."""
        if self.raw is None:
            text = json.dumps(self.values, ensure_ascii=False, default=str)
        else:
            text = self.raw[: _MAX_SHOWN + 1].decode("utf-8", errors="backslashreplace")
        return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}… (cut)"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows.

    Attributes:
      rows: blank lines left out.
      end: where the next chunk begins.
      table: the same rows in Arrow (Parquet only).
    """

    rows: Sequence[ReadRow]
    end: Position
    table: pa.Table | None = None


ResultTypes = Mapping[str, pa.DataType]


def open_requests(path: str | Path, result_types: ResultTypes) -> RequestFile:
    """Opens a file of requests.

    Args:
      path: `.jsonl` or `.parquet`.
      result_types: columns that will be added; a row that has one of them already is rejected.

    Raises:
      ConfigError: another ending.
      DataError: no such file, a damaged one, or one whose columns have a result's name.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix == ".jsonl":
        return JsonLines(path, result_types)
    if path.suffix == ".parquet":
        return ParquetRows(path, result_types)
    raise ConfigError(f"{path}: requests are read from .jsonl or .parquet files")


class JsonLines:
    """A file of requests of one JSON object per line, and how results are written in its format.

    Attributes:
      path: the file.
      suffix: of files of results.
      unit: in which `progress` counts, 'rows' or 'bytes'.
    """

    suffix, unit = ".jsonl", "bytes"

    def __init__(self, path: Path, result_types: ResultTypes) -> None:
        self.path = path
        self._names = tuple(result_types)

    def positions(self, shard: Shard) -> tuple[Position, Position]:
        """Where a part begins and ends; the parts hold every row once."""
        size = self.path.stat().st_size
        offsets = [size * place // shard.count for place in (shard.index, shard.index + 1)]
        with self.path.open("rb") as file:
            start = _line_after(file, Position(), offsets[0])
            return start, _line_after(file, start, offsets[1])

    def chunks(self, start: Position, size: int, end: Position | None = None) -> Iterator[Chunk]:
        """The rows from `start` up to `end` (None: all), at most `size` at a time.

        Raises:
          DataError: the file is damaged.
        """
        last = self.path.stat().st_size if end is None else end.offset
        with self.path.open("rb") as file:
            file.seek(start.offset)
            rows: list[ReadRow] = []
            number, begun = start.row, start.offset
            while file.tell() < last and (line := file.readline(MAX_LINE_BYTES + 1)):
                too_long = len(line) > MAX_LINE_BYTES and not line.endswith(b"\n")
                if too_long:
                    _skip_line(file)
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    rows.append(self._read(number, line.strip(), too_long))
                number += 1
                if len(rows) == size or file.tell() - begun > _MAX_CHUNK_BYTES:
                    begun = file.tell()
                    yield Chunk(rows, Position(number, begun))
                    rows = []
            if rows:
                yield Chunk(rows, Position(number, file.tell()))

    def no_rows(self, at: Position) -> Chunk:
        """A chunk without rows, of which a part of a file may consist."""
        return Chunk([], at)

    def progress(self, start: Position, end: Position) -> int:
        """How much lies between two positions."""
        return end.offset - start.offset

    def write_part(
        self, path: Path, chunk: Chunk, kept: Sequence[int], results: Mapping[str, Any]
    ) -> None:
        """Writes the rows `kept` of a chunk to a new file, with their results.

        `results` hold, by column, one float32 array or list of ids per kept row.
        """
        with path.open("wb") as file:
            for i, index in enumerate(kept):
                raw = chunk.rows[index].raw
                assert raw is not None
                added = {name: _plain(values[i]) for name, values in results.items()}
                # Into the row's own text, of which not a byte changes: it ends with a brace.
                text = json.dumps(added, ensure_ascii=False)[1:].encode()
                comma = b", " if chunk.rows[index].values else b""
                file.write(raw[:-1].rstrip() + comma + text + b"\n")

    def join(self, parts: Iterable[Path], path: Path) -> None:
        """Writes all parts, in order, to one file; at least one of them."""
        with path.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)

    def _read(self, number: int, line: bytes, too_long: bool) -> ReadRow:
        try:
            if too_long:
                raise RejectedRow("too_long", f"the line has more than {MAX_LINE_BYTES:,} bytes")
            values = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
            if not isinstance(values, dict):
                raise RejectedRow("not_an_object", "the line is JSON, but not an object")
            if taken := [name for name in self._names if name in values]:
                reason = f"the row has a field {taken[0]!r} already, which results would have"
                raise RejectedRow("field_taken", reason)
            return ReadRow(number, values, None, line)
        except RejectedRow as error:
            problem = error
        except UnicodeDecodeError as error:
            reason = f"byte 0x{line[error.start]:02x} at offset {error.start} is not UTF-8"
            problem = RejectedRow("invalid_utf8", reason)
        except (ValueError, RecursionError) as error:
            problem = RejectedRow("invalid_json", f"not JSON: {error}")
        return ReadRow(number, None, problem, line[: 4 * _MAX_SHOWN])


class ParquetRows:
    """Requests in Parquet: as `JsonLines`."""

    suffix, unit = ".parquet", "rows"

    def __init__(self, path: Path, result_types: ResultTypes) -> None:
        self.path = path
        self._types = result_types
        names = column_names(path)
        with open_parquet(path) as file:
            metadata = file.metadata
            self._group_rows = [metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        for name in result_types:
            if name in names:
                raise DataError(
                    f"{path} has a column {name!r} already, which results would have; rename it"
                )

    def positions(self, shard: Shard) -> tuple[Position, Position]:
        total = sum(self._group_rows)
        places = (shard.index, shard.index + 1)
        start, end = (Position(total * place // shard.count) for place in places)
        return start, end

    def chunks(self, start: Position, size: int, end: Position | None = None) -> Iterator[Chunk]:
        end = end or self.positions(Shard())[1]
        ends = np.cumsum([0, *self._group_rows])
        first = int(np.searchsorted(ends, start.row, side="right")) - 1
        row = int(ends[first])
        groups = list(range(first, len(self._group_rows)))
        if not groups:
            return
        with open_parquet(self.path) as file:
            try:
                for batch in file.iter_batches(size, row_groups=groups):
                    if row >= end.row:
                        return
                    skipped = min(max(0, start.row - row), batch.num_rows)
                    number = row + skipped
                    rest = batch.slice(skipped, end.row - number)
                    row += batch.num_rows
                    if rest.num_rows > 0:
                        table = pa.Table.from_batches([plain_batch(rest)])
                        rows = _read_batch(plain_batch(rest, microseconds=True), number)
                        yield Chunk(rows, Position(number + rest.num_rows), table)
            except (pa.ArrowException, OSError) as error:
                raise parquet_damage(self.path, error) from error

    def no_rows(self, at: Position) -> Chunk:
        with open_parquet(self.path) as file:
            batch = pa.RecordBatch.from_pylist([], file.schema_arrow)
        return Chunk([], at, pa.Table.from_batches([plain_batch(batch)]))

    def progress(self, start: Position, end: Position) -> int:
        return end.row - start.row

    def write_part(
        self, path: Path, chunk: Chunk, kept: Sequence[int], results: Mapping[str, Any]
    ) -> None:
        assert chunk.table is not None
        table = chunk.table.take(pa.array(kept, pa.int64()))
        for name, values in results.items():
            kind = self._types[name]
            table = table.append_column(name, pa.array([list(row) for row in values], kind))
        pq.write_table(table, path, compression="zstd")

    def join(self, parts: Iterable[Path], path: Path) -> None:
        writer: pq.ParquetWriter | None = None
        for part in parts:
            table = pq.read_table(part)
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None
        writer.close()


RequestFile = JsonLines | ParquetRows


def _line_after(file: BinaryIO, start: Position, offset: int) -> Position:
    """Where the first line begins that does so at `offset` or later, itself not before `start`."""
    if offset <= start.offset:
        return start
    row, left = start.row, offset - 1 - start.offset
    file.seek(start.offset)
    while left and (block := file.read(min(left, 1 << 20))):
        row, left = row + block.count(b"\n"), left - len(block)
    _skip_line(file)
    return Position(row + 1, file.tell())


def _skip_line(file: Any) -> None:
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


def _refuse_constant(name: str) -> Any:
    raise RejectedRow("nan", f"{name} is no JSON; write null where a value is not known")


def _read_batch(batch: pa.RecordBatch, first: int) -> list[ReadRow]:
    """Rows of Arrow as Python objects. Arrow does not look whether strings are UTF-8."""
    try:
        return [ReadRow(first + i, values) for i, values in enumerate(batch.to_pylist())]
    except (ValueError, OverflowError):
        return [_read_arrow_row(batch.slice(i, 1), first + i) for i in range(batch.num_rows)]


def _read_arrow_row(row: pa.RecordBatch, number: int) -> ReadRow:
    values: dict[str, Any] = {}
    problem: RejectedRow | None = None
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except (ValueError, OverflowError) as error:
            kind = "invalid_utf8" if isinstance(error, UnicodeDecodeError) else "wrong_type"
            problem = RejectedRow(kind, f"{name!r} cannot be read: {error}")
    if problem is None:
        return ReadRow(number, values)
    return ReadRow(number, None, problem, json.dumps(values, default=str).encode())


def _plain(values: Any) -> list[Any]:
    """A result for JSON; float32 in its shortest form, not with the digits of a float64."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return [float(str(value)) for value in values]
    return list(values)
