"""Files of requests, read in chunks of so many rows, and files of the same rows with results.

Two formats, chosen by the ending: JSON lines (`.jsonl`) and Parquet (`.parquet`). Results have the
format of the requests; a row keeps what it had, to the byte in JSON lines. Rows are counted from 0;
in JSON lines that is the number of the line, and blank lines are no rows.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.dataset.files import column_names, open_parquet, parquet_damage
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.requests.request import RejectedRow

_MAX_SHOWN = 10_000


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of a file that have about as many rows; `index` from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads `INDEX/COUNT`; raises ConfigError where it says something else."""
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

    def rows(self, number: int) -> tuple[int, int]:
        """The first row of this part of a file of so many rows, and the one after its last."""
        return number * self.index // self.count, number * (self.index + 1) // self.count


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row of a file."""

    number: int  # from 0
    values: Mapping[str, Any] | None  # None where it could not be read
    problem: RejectedRow | None = None  # why not
    raw: bytes | None = None  # its line; None in Parquet

    def rejected(self, problem: RejectedRow) -> dict[str, Any]:
        """What is kept of the row where it has no answer, for JSON: `raw` as far as it is shown."""
        if self.raw is None:
            raw = json.dumps(self.values, ensure_ascii=False, default=str)
        else:
            raw = self.raw[: _MAX_SHOWN + 1].decode("utf-8", errors="backslashreplace")
        raw = raw if len(raw) <= _MAX_SHOWN else f"{raw[:_MAX_SHOWN]}… (cut)"
        return {"row": self.number, "kind": problem.kind, "reason": str(problem), "raw": raw}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows; `end` is the first row after them, `table` has them in Arrow (Parquet)."""

    rows: Sequence[ReadRow]
    end: int
    table: pa.Table | None = None


class JsonLines:
    """A file of requests of one JSON object per line, and how results are written in its format."""

    def __init__(self, path: Path, result_types: Mapping[str, pa.DataType]) -> None:
        self.path, self._types = path, result_types

    @cached_property
    def num_rows(self) -> int:
        """Lines of the file."""
        with self.path.open("rb") as file:
            return sum(1 for _ in file)

    def chunks(self, start: int, size: int, end: int) -> Iterator[Chunk]:
        """The rows from `start` up to `end`, at most `size` at a time; at least one chunk. Raises
        DataError for a damaged file.
        """
        with self.path.open("rb") as file:
            numbered = itertools.islice(enumerate(file), start, end)
            lines = ((n, line.removeprefix(codecs.BOM_UTF8).strip()) for n, line in numbered)
            rows = (self._read(number, line) for number, line in lines if line)
            some = list(itertools.islice(rows, size))
            yield Chunk(some, some[-1].number + 1 if some else end)
            while some := list(itertools.islice(rows, size)):
                yield Chunk(some, some[-1].number + 1)

    def write_part(
        self, path: Path, chunk: Chunk, kept: Sequence[int], results: Mapping[str, Any]
    ) -> None:
        """Writes the rows `kept` of a chunk to a new file, with their results.

        `results` hold, by column, one float32 array or list of ids per kept row.
        """
        with path.open("wb") as file:
            for row, *values in zip((chunk.rows[i] for i in kept), *results.values(), strict=True):
                added = dict(zip(results, map(_plain, values), strict=True))
                # Into the row's own text, of which not a byte changes: it ends with a brace.
                text = json.dumps(added, ensure_ascii=False)[1:].encode()
                before = (row.raw or b"")[:-1].rstrip() + (b", " if row.values else b"")
                file.write(before + text + b"\n")

    def join(self, parts: Iterable[Path], path: Path) -> None:
        """Writes all parts, in order, to one file; at least one of them."""
        with path.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)

    def _read(self, number: int, line: bytes) -> ReadRow:
        problem = None
        try:
            values = msgspec.json.decode(line)
        except (ValueError, RecursionError) as error:
            kind = "invalid_utf8" if "UTF-8" in str(error) else "invalid_json"
            return ReadRow(number, None, RejectedRow(kind, f"not JSON: {error}"), line)
        if not isinstance(values, dict):
            problem = RejectedRow("not_an_object", "the line is JSON, but not an object")
        elif taken := [name for name in self._types if name in values]:
            reason = f"the row has a field {taken[0]!r} already, which results would have"
            problem = RejectedRow("field_taken", reason)
        return ReadRow(number, None if problem else values, problem, line)


class ParquetRows:
    """Requests in Parquet: as `JsonLines`."""

    def __init__(self, path: Path, result_types: Mapping[str, pa.DataType]) -> None:
        self.path, self._types = path, result_types
        if taken := [name for name in column_names(path) if name in result_types]:
            raise DataError(
                f"{path} has a column {taken[0]!r} already, which results would have; rename it"
            )
        with open_parquet(path) as file:
            groups = map(file.metadata.row_group, range(file.num_row_groups))
            self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        self.num_rows = int(self._starts[-1])

    def chunks(self, start: int, size: int, end: int) -> Iterator[Chunk]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        row = int(self._starts[first])
        with open_parquet(self.path) as file:
            if start == end:
                yield Chunk([], end, file.schema_arrow.empty_table())
                return
            try:
                for batch in file.iter_batches(size, range(first, len(self._starts) - 1)):
                    number = max(row, start)
                    table = pa.Table.from_batches([batch])[number - row : max(0, end - row)]
                    row += batch.num_rows
                    if table.num_rows:
                        yield Chunk(self._read(table, number), number + table.num_rows, table)
                    if row >= end:
                        return
            except (pa.ArrowException, OSError) as error:
                raise parquet_damage(self.path, error) from error

    def _read(self, table: pa.Table, number: int) -> list[ReadRow]:
        """The rows of a table, the first of which has this number in the file."""
        try:
            return [ReadRow(n, values) for n, values in enumerate(table.to_pylist(), number)]
        except (ValueError, OverflowError) as error:  # such as text that is not UTF-8
            if table.num_rows > 1:  # which of them?
                one_by_one = (self._read(table.slice(n, 1), number + n) for n in range(len(table)))
                return [row for rows in one_by_one for row in rows]
            kind = "invalid_utf8" if isinstance(error, UnicodeDecodeError) else "wrong_type"
            problem = RejectedRow(kind, f"the row cannot be read: {error}")
            return [ReadRow(number, None, problem, f"row {number} of {self.path.name}".encode())]

    def write_part(
        self, path: Path, chunk: Chunk, kept: Sequence[int], results: Mapping[str, Any]
    ) -> None:
        assert chunk.table is not None
        # Arrow takes rows of some types only, and slices those of all.
        rows = [chunk.table.slice(index, 1) for index in kept]
        table = pa.concat_tables([chunk.table.slice(0, 0), *rows])
        for name, values in results.items():
            column = pa.array([list(value) for value in values], self._types[name])
            table = table.append_column(name, column)
        pq.write_table(table, path, compression="zstd")

    def join(self, parts: Iterable[Path], path: Path) -> None:
        tables = map(pq.read_table, parts)
        first = next(tables)
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)


RequestFile = JsonLines | ParquetRows
_FORMATS: Mapping[str, type[RequestFile]] = {".jsonl": JsonLines, ".parquet": ParquetRows}


def open_requests(path: str | Path, result_types: Mapping[str, pa.DataType]) -> RequestFile:
    """Opens a `.jsonl` or `.parquet` file of requests; `result_types` are columns that will be
    added.

    Raises:
      ConfigError: another ending.
      DataError: no such file, a damaged one, one without rows, or one whose columns have a result's
        name.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ConfigError(f"{path}: requests are read from .jsonl or .parquet files")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    file = _FORMATS[path.suffix](path, result_types)
    if not file.num_rows:
        raise DataError(f"{path} has no rows")
    return file


def _plain(values: Any) -> list[Any]:
    """A result for JSON; float32 in its shortest form, not with the digits of a float64."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return [float(str(value)) for value in values]
    return list(values)
