"""Rows of a table as they are read: what is converted, noted, or rejected, and why."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data import columns, files
from m6rec_jax.data.report import Findings
from m6rec_jax.data.schema import EventsSpec
from m6rec_jax.data.splits import PART_NAMES
from m6rec_jax.data.values import (
    FIRST_TIME,
    LAST_TIME,
    MISSING_WORD,
    out_of_range,
    unknown_id_hint,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.format_strings import text_of

_CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}]"
# U+FFFD, or UTF-8 that was read as Latin-1 or Windows-1252 (é as Ã©, an apostrophe as â€™).
_WRONG_ENCODING = r"\x{FFFD}|[\x{C2}\x{C3}][\x{80}-\x{BF}]|\x{E2}\x{20AC}"
_TEXT_NOTES = {
    "control_characters": _CONTROL,
    "wrong_encoding": _WRONG_ENCODING,
    "missing_as_text": MISSING_WORD,
}


@dataclass(slots=True)
class CheckedRows:
    """A batch of rows: converted columns, and why rows are rejected.

    Attributes:
      raw: the rows as they are.
      starts: the files of the table so far, each with the number of its first row over all files;
        shared by the batches of a table.
      table: `users`, `items` or `events`.
      findings: what was found so far; None: the first row that would be rejected raises DataError.
      values: converted columns by name.
      reasons: why rows are rejected, by offset in the batch.
    """

    raw: files.RawBatch
    starts: list[tuple[int, Path]]
    table: str
    findings: Findings | None = None
    values: dict[str, pa.Array] = field(default_factory=dict)
    reasons: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.starts or self.starts[-1][1] != self.raw.path:
            self.starts.append((self.raw.first_row, self.raw.path))

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the rows over all files `[n]` int64."""
        return self.raw.first_row + self.raw.rows

    def place(self, number: int) -> str:
        """Where the row of a number stands: in this file, or in one before it."""
        first, path = self.starts[bisect.bisect(self.starts, number, key=lambda at: at[0]) - 1]
        name = path if self.findings is None else self.findings.name_of(path)
        return f"row {number - first}{'' if path == self.raw.path else f' of {name}'}"

    def reject(
        self, kind: str, offsets: Sequence[int] | np.ndarray, column: str, reason: str
    ) -> None:
        """Reports rows (offsets in the batch, ascending) and marks them as rejected."""
        if not len(offsets):
            return
        if self.findings is None:
            raise DataError(
                f"{self.raw.path}, row {self.raw.rows[offsets[0]]}, column {column!r}: {reason} "
                "(`m6rec data check` lists every problem of a folder, and sets such rows aside "
                "with --quarantine)"
            )
        self._add(kind, offsets, column, reason)
        for offset in offsets:
            self.reasons.setdefault(int(offset), []).append(f"{column}: {reason}")

    def note(
        self, kind: str, offsets: Sequence[int] | np.ndarray, column: str, example: str = ""
    ) -> None:
        """Reports rows without rejecting them."""
        if len(offsets):
            self._add(kind, offsets, column, example)

    def _add(
        self, kind: str, offsets: Sequence[int] | np.ndarray, column: str, example: str
    ) -> None:
        assert self.findings is not None
        rows = self.raw.rows[np.asarray(offsets, np.int64)]
        file = self.raw.path
        self.findings.add(kind, self.table, file, column, rows=rows.tolist(), example=example)

    def convert(self, column: str, kind: str) -> pa.Array:
        """Converts a column, rejecting the rows whose value does not fit."""
        values, bad = columns.convert(self.raw.batch.column(column), kind)
        for value in bad:
            self.reject(value.kind, [value.offset], column, value.reason)
        self.values[column] = values
        return values

    def require(self, column: str, kind: str) -> None:
        """Rejects rows without a value, unless something worse was said about them already."""
        missing = np.flatnonzero(self.values[column].is_null().to_numpy(zero_copy_only=False))
        offsets = [offset for offset in missing.tolist() if not self.says(offset, column)]
        self.reject(kind, offsets, column, "the value is missing")

    def require_words(self, column: str, template: str) -> None:
        """Rejects rows without a value that a template needs."""
        texts = map(text_of, self.values[column].to_pylist())
        offsets = [
            offset
            for offset, text in enumerate(texts)
            if not text and not self.says(offset, column)
        ]
        reason = f"nothing there, and template '{template}' needs {{{column}}}"
        self.reject("missing_words", offsets, column, reason)

    def note_whitespace(self, column: str) -> None:
        """Reports ids that begin or end with a space."""
        values = self.values[column]
        trimmed = pc.utf8_trim_whitespace(values)
        self.note("outer_whitespace", where(pc.not_equal(values, trimmed)), column)

    def note_text(self, column: str) -> None:
        """Reports texts, also in lists, with control characters or of a wrong encoding."""
        values = self.values[column]
        owners = np.arange(len(values))
        if pa.types.is_list(values.type):
            owners, values = pc.list_parent_indices(values).to_numpy(), values.flatten()
        if not pa.types.is_string(values.type):
            return
        notes = dict(_TEXT_NOTES)
        if self.raw.path.suffix.lower() == ".csv":
            # A quote that is never closed ends at the next one, rows further down.
            separators = min(1000, max(2, self.raw.batch.num_columns - 1))
            notes["rows_in_value"] = rf"\n([^\n]*,){{{separators}}}"
        for kind, pattern in notes.items():
            found = where(pc.match_substring_regex(values, pattern))
            if len(found):
                example = repr(values[int(found[0])].as_py())[:80]
                self.note(kind, np.unique(owners[found]), column, example)

    def says(self, offset: int, column: str) -> bool:
        """Whether a row was rejected for a column."""
        return any(reason.startswith(f"{column}: ") for reason in self.reasons.get(offset, ()))

    def good(self) -> np.ndarray:
        """Which rows have no errors so far, `[n]` bool."""
        good = np.ones(self.raw.batch.num_rows, bool)
        good[list(self.reasons)] = False
        return good


def check_ids(rows: CheckedRows, column: str, seen: dict[str, int]) -> None:
    """Converts ids of users or items; rejects rows without one, or with one that was there before.

    Args:
      rows: of users or items.
      column: of the ids.
      seen: the number of the first row of each id so far; those of the batch are added.
    """
    ids = rows.convert(column, columns.ID)
    rows.require(column, "missing_id")
    for offset, (id_, number) in enumerate(
        zip(ids.to_pylist(), rows.numbers.tolist(), strict=True)
    ):
        if id_ is not None and (first := seen.setdefault(id_, number)) != number:
            text = f"{id_!r} stands in {rows.place(first)} already, and ids must be unique"
            rows.reject("duplicate_id", [offset], column, text)


def check_events(
    rows: CheckedRows,
    spec: EventsSpec,
    users: Mapping[str, int] | None,
    items: Mapping[str, int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Converts ids, times and values of events; rejects rows that lack one or have a wrong one.

    Args:
      rows: of events.
      spec: names the columns.
      users, items: id -> index in the table; None where it could not be read: all ids are good.

    Returns:
      the index of each row's user and item `[n]` int64, -1 where there is none.
    """
    places = [
        _places(rows, column, table, index)
        for column, table, index in ((spec.user, "user", users), (spec.item, "item", items))
    ]
    rows.convert(spec.time, columns.TIME)
    rows.require(spec.time, "missing_time")
    times = as_floats(rows.values[spec.time])
    for offset in np.flatnonzero((times < FIRST_TIME) | (times > LAST_TIME)).tolist():
        text = out_of_range(times[offset])
        rows.reject("time_out_of_range", [offset], spec.time, text)
    if spec.value is not None:
        rows.convert(spec.value, columns.VALUE)
        rows.require(spec.value, "missing_value")
    return places[0], places[1]


def _places(
    rows: CheckedRows, column: str, table: str, index: Mapping[str, int] | None
) -> np.ndarray:
    """Looks each distinct id of the batch up once."""
    ids = rows.convert(column, columns.ID)
    rows.require(column, "missing_id")
    if index is None:
        return np.full(len(ids), -1)
    encoded = ids.dictionary_encode()
    indices = [*(index.get(id_, -1) for id_ in encoded.dictionary.to_pylist()), -1]
    places = np.asarray(indices, np.int64)[encoded.indices.fill_null(-1).to_numpy()]
    for offset in np.flatnonzero((places < 0) & ids.is_valid().to_numpy(zero_copy_only=False)):
        id_ = ids[int(offset)].as_py()
        text = f"{id_!r} is not in the {table}s table"
        if rows.findings is not None:
            text += ", or rejected there"
        rows.reject(f"unknown_{table}", [int(offset)], column, text + unknown_id_hint(id_, index))
    return places


def check_part_names(rows: CheckedRows, column: str) -> None:
    """Converts the names of events' parts, rejecting what is none."""
    parts = rows.convert(column, "string")
    for offset in where(pc.invert(pc.is_in(parts, pa.array([*PART_NAMES])))).tolist():
        if rows.says(offset, column):
            continue
        text = "the value is missing"
        if (part := parts[offset].as_py()) is not None:
            text = f"{part!r} is none of {', '.join(PART_NAMES)}{did_you_mean(part, PART_NAMES)}"
        rows.reject("unknown_part", [offset], column, text)


def as_floats(values: pa.Array) -> np.ndarray:
    """Float64 `[n]` with NaN for null."""
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def where(mask: pa.Array) -> np.ndarray:
    """Offsets at which a mask is true (null is not)."""
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))
