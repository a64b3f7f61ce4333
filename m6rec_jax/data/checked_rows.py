"""Rows of a table under inspection: what is converted, noted, or rejected, and why."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data import columns, files
from m6rec_jax.data.report import Findings
from m6rec_jax.data.values import MISSING_WORD
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
    """A batch under inspection: converted columns, and why rows are rejected.

    `starts` has the files of its table so far: the number of the first row, over all files, and
    the name.
    """

    raw: files.RawBatch
    starts: list[tuple[int, str]]
    table: str
    findings: Findings
    values: dict[str, pa.Array] = field(default_factory=dict)
    reasons: dict[int, list[str]] = field(default_factory=dict)

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the rows over all files `[n]` int64."""
        return self.raw.first_row + self.raw.rows

    def place(self, number: int) -> str:
        """Where the row of a number stands: in this file, or in one before it."""
        first, name = self.starts[bisect.bisect(self.starts, number, key=lambda at: at[0]) - 1]
        return f"row {number - first}{'' if name == self.raw.path.name else f' of {name}'}"

    def reject(
        self, kind: str, offsets: Sequence[int] | np.ndarray, column: str, reason: str = ""
    ) -> None:
        """Reports rows (offsets in the batch, ascending) and marks them as rejected."""
        if not len(offsets):
            return
        self._add(kind, offsets, column, reason)
        for offset in offsets:
            self.reasons.setdefault(int(offset), []).append(f"{column}: {reason or kind}")

    def note(
        self, kind: str, offsets: Sequence[int] | np.ndarray, column: str, example: str = ""
    ) -> None:
        """Reports rows without rejecting them."""
        if len(offsets):
            self._add(kind, offsets, column, example)

    def _add(
        self, kind: str, offsets: Sequence[int] | np.ndarray, column: str, example: str
    ) -> None:
        rows = self.raw.rows[np.asarray(offsets, np.int64)]
        name = self.raw.path.name
        self.findings.add(kind, self.table, name, column, rows=rows.tolist(), example=example)

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
        self.reject(kind, offsets, column, "nothing there")

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
        for kind, pattern in _TEXT_NOTES.items():
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


def where(mask: pa.Array) -> np.ndarray:
    """Offsets at which a mask is true (null is not)."""
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))
