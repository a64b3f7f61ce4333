"""Lines of text files and the fields in them, as Arrow arrays that know their line numbers.

There are no quotes: a line break always ends a row. Lines are counted from 1, as editors do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data import columns, files
from m6rec_jax.errors import DataError

TABS = files.CsvFormat("\t", quoted=False)


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
      fields: the columns `[n]` as bytes; null where nothing stands.
    """

    path: Path
    numbers: np.ndarray
    fields: pa.RecordBatch

    def error(self, offset: int, message: str) -> DataError:
        """An error about one of the lines."""
        return _error(self.path, self.numbers[offset], message)

    def column(self, name: str, kind: str) -> pa.Array:
        """Values `[n]` of a column as a kind of `columns.ARROW_TYPES`; empty ones are null.

        Blanks separate the members of lists.

        Raises:
          DataError: a value of another kind, named by its line.
        """
        of_words = kind == "list<string>"
        values, bad = columns.convert(self.fields[name], "string" if of_words else kind)
        if bad:
            raise self.error(bad[0].offset, f"column {name!r}: {bad[0].reason}")
        if not of_words:
            return values
        trimmed = pc.ascii_trim_whitespace(values)
        words = pc.ascii_split_whitespace(trimmed)
        return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, words.type), words)

    def check_unique(self, ids: pa.Array, known: dict[str, int], advice: str) -> None:
        """Adds the ids `[n]` of the lines to those known from lines before.

        Raises:
          DataError: one is missing, or there already.
        """
        for offset, identifier in enumerate(ids.to_pylist()):
            if identifier is None:
                raise self.error(offset, "the id is empty")
            if identifier in known:
                before = known[identifier]
                raise self.error(offset, f"{identifier!r} is on line {before} already; {advice}")
            known[identifier] = int(self.numbers[offset])


def _error(path: Path, number: int, message: str) -> DataError:
    hint = ". The file ends without a line break: if it was cut off, copy it again"
    return DataError(f"{path}, line {number}: {message}{'' if _ends_whole(path) else hint}")


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(1, path.stat().st_size), os.SEEK_END)
        return file.read() == b"\n"


def line_batches(
    path: Path, report: Report, names: Sequence[str], *, header: bool, delimiter: str = "\t"
) -> Iterator[Lines]:
    """Streams the lines of a file; empty ones are left out and counted.

    Args:
      path: the file.
      report: where empty lines are counted.
      names: of its columns.
      header: whether the first line is one, and no row.
      delimiter: between two columns.

    Raises:
      DataError: a line with more or fewer fields than there are names, or a line that is too long
        to be one.
    """

    def ragged(_: Path, row: int, expected: int, found: int, text: str) -> DataError | None:
        if not text.strip():
            report.count("empty lines", path, np.array([row + 1]))
            return None
        return _error(
            path,
            row + 1,
            f"{found} fields, not the {expected} of line 1 ({', '.join(names)}); one tab stands "
            "between two fields, and none inside of one",
        )

    form = files.CsvFormat(delimiter, quoted=False, names=names)
    for raw in files.raw_batches([path], on_ragged=ragged, form=form):
        first, *others = raw.batch.columns
        words = pc.match_substring_regex(first, r"\S").fill_null(False)
        filled = np.any([words, *(column.is_valid() for column in others)], axis=0)
        report.count("empty lines", path, raw.rows[~filled] + 1)
        filled &= raw.rows >= header
        yield Lines(path, raw.rows[filled] + 1, raw.batch.filter(pa.array(filled)))
    if not _ends_whole(path):
        report.notes.append(f"{path.name}: the last line has no line break; is it whole?")


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
    known: dict[str, int] = {}
    for lines in line_batches(path, report, names, header=header):
        ids = lines.column(identifier, columns.ID)
        lines.check_unique(ids, known, "an id must be there once")
        found = {name: lines.column(name, kind) for name, kind in kinds.items()}
        batches.append(pa.table({identifier: ids, **found, "line": pa.array(lines.numbers)}))
    if not sum(batch.num_rows for batch in batches):
        raise DataError(f"{path} has no rows")
    return pa.concat_tables(batches).combine_chunks()
