"""Lines and tab-separated fields of text files, as Arrow arrays that know their line numbers.

Files are read block by block. There are no quotes: a line break always ends a row. Lines are
counted from 1, as editors do.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data import columns
from m6rec_jax.errors import DataError

_BLOCK_BYTES = 8 << 20
_LONGEST_LINE = 256 << 20


@dataclass
class Report:
    """What an import left out or did not use, and where that was met first.

    Attributes:
      counts: what -> how many lines, and the first of them.
      notes: sentences for the user.
    """

    counts: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, what: str, path: Path, numbers: np.ndarray) -> None:
        """Adds lines of a file, by their numbers, to what is counted as `what`."""
        if len(numbers):
            known, first = self.counts.get(what, (0, f"{path.name}, line {numbers[0]}"))
            self.counts[what] = (known + len(numbers), first)

    def render(self) -> list[str]:
        """A line for every note and count."""
        found = [f"{what}: {n:,}, first in {first}" for what, (n, first) in self.counts.items()]
        return [*self.notes, *found]


@dataclass(frozen=True, slots=True)
class Lines:
    """Some lines of a file that are not empty.

    Attributes:
      path: the file.
      numbers: line numbers `[n]` int64.
      texts: strings `[n]` without line ends.
      unfinished: whether the last one lacks its line break.
    """

    path: Path
    numbers: np.ndarray
    texts: pa.Array
    unfinished: bool

    def error(self, offset: int, message: str) -> DataError:
        """An error about one of the lines."""
        cut = self.unfinished and offset == len(self.numbers) - 1
        hint = ". The file ends there without a line break: if it was cut off, copy it again"
        return DataError(
            f"{self.path}, line {self.numbers[offset]}: {message}{hint if cut else ''}"
        )


def first_line(path: Path) -> str:
    """The first line of a file; raises DataError where there is none, or it is not UTF-8."""
    with path.open("rb") as file:
        line = file.readline(_LONGEST_LINE).removeprefix(codecs.BOM_UTF8)
    if not line.strip():
        raise DataError(f"{path}, line 1: nothing there; the file must begin with its first row")
    return _decoded(path, line, 1).rstrip("\r\n")


def line_batches(path: Path, report: Report, *, skip: int = 0) -> Iterator[Lines]:
    """Streams the lines of a file in UTF-8; empty ones are left out and counted.

    Args:
      path: the file.
      report: where empty lines are counted.
      skip: lines at the beginning that are not wanted.

    Raises:
      DataError: invalid UTF-8, named by its line, or a line that is too long to be one.
    """
    number, rest = 1, b""
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while (block := file.read(_BLOCK_BYTES)) or rest:
            data = rest + block
            end = data.rfind(b"\n") + 1 if block else len(data)
            whole, rest = data[:end], data[end:]
            if len(rest) > _LONGEST_LINE:
                raise DataError(f"{path}, line {number}: longer than {_LONGEST_LINE:,} bytes")
            if not whole:
                continue
            texts = _split(path, whole, number)
            numbers = np.arange(number, number + len(texts))
            number += len(texts)
            wanted = numbers > skip
            empty = pc.equal(pc.ascii_trim_whitespace(texts), "").to_numpy(zero_copy_only=False)
            report.count("empty lines", path, numbers[empty & wanted])
            keep = wanted & ~empty
            unfinished = not whole.endswith(b"\n")
            yield Lines(path, numbers[keep], texts.filter(pa.array(keep)), unfinished)
            if unfinished:
                report.notes.append(f"{path.name}: the last line has no line break; is it whole?")


def _split(path: Path, data: bytes, number: int) -> pa.Array:
    """The lines in `data`, the first of which is line `number`."""
    _decoded(path, data, number)
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pc.ascii_rtrim(pa.Array.from_buffers(pa.string(), len(ends), buffers), "\r\n")


def _decoded(path: Path, data: bytes, number: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + data.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: invalid UTF-8 (byte 0x{data[error.start]:02x}); save the file "
            "as UTF-8"
        ) from error


def split_fields(lines: Lines, names: Sequence[str]) -> dict[str, pa.Array]:
    """The tab-separated fields of lines, by the names of their columns.

    Raises:
      DataError: a line with more or fewer fields than there are names.
    """
    fields = pc.split_pattern(lines.texts, "\t")
    widths = pc.list_value_length(fields).to_numpy()
    if (wrong := np.flatnonzero(widths != len(names))).size:
        raise lines.error(
            int(wrong[0]),
            f"{widths[wrong[0]]} fields, not the {len(names)} of line 1 ({', '.join(names)}); "
            "one tab stands between two fields, and none inside of one",
        )
    flat = fields.flatten()
    places = np.arange(0, len(flat), max(1, len(names)))
    return {name: flat.take(pa.array(places + i)) for i, name in enumerate(names)}


def convert_field(lines: Lines, values: pa.Array, name: str, kind: str) -> pa.Array:
    """Values `[n]` of a column as a kind of `columns.ARROW_TYPES`; empty ones are null.

    Raises:
      DataError: a value of another kind, named by its line.
    """
    converted, bad = columns.convert(values, kind)
    if bad:
        raise lines.error(bad[0].offset, f"column {name!r}: {bad[0].reason}")
    return converted


def split_words(values: pa.Array) -> pa.Array:
    """Lists `[n]` of the words of strings, which blanks separate; an empty string is null."""
    trimmed = pc.ascii_trim_whitespace(values)
    empty = pc.equal(trimmed, "")
    words = pc.ascii_split_whitespace(trimmed)
    return pc.if_else(empty, pa.scalar(None, words.type), words)


def read_table(
    path: Path,
    report: Report,
    names: Sequence[str],
    kinds: Mapping[str, str],
    identifier: str,
    *,
    header: bool = True,
) -> pa.Table:
    """A table of users or items, in memory, whose ids are there and differ.

    Args:
      path: the file.
      report: where empty lines are counted.
      names: of all columns of the file.
      kinds: column -> type, for those that are wanted; lists are separated by blanks.
      identifier: the column of ids.
      header: whether the first line is one, and no row.

    Returns:
      the wanted columns, and `line`: the number of each row.

    Raises:
      DataError: a field too many or too few, a value of another type, an id that is missing or
        there twice.
    """
    batches = []
    for lines in line_batches(path, report, skip=int(header)):
        fields = split_fields(lines, names)
        batch = {identifier: convert_field(lines, fields[identifier], identifier, columns.ID)}
        if batch[identifier].null_count:
            missing = batch[identifier].is_null().to_numpy(zero_copy_only=False)
            raise lines.error(int(np.argmax(missing)), f"column {identifier!r} is empty")
        for name, kind in kinds.items():
            if kind == "list<string>":
                batch[name] = split_words(fields[name])
            else:
                batch[name] = convert_field(lines, fields[name], name, kind)
        batches.append(pa.table(batch | {"line": pa.array(lines.numbers)}))
    if not sum(batch.num_rows for batch in batches):
        raise DataError(f"{path} has no rows")
    table = pa.concat_tables(batches).combine_chunks()
    check_unique(path, table[identifier], table["line"].to_numpy())
    return table


def check_unique(path: Path, ids: pa.ChunkedArray, numbers: np.ndarray) -> None:
    """Raises DataError where two lines, whose numbers are `[n]`, have one id."""
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) < len(codes):
        again = int(np.setdiff1d(np.arange(len(codes)), first)[0])
        before = int(np.argmax(codes == codes[again]))
        raise DataError(
            f"{path}, line {numbers[again]}: {ids[again].as_py()!r} is on line {numbers[before]} "
            "already; an id must be there once"
        )
