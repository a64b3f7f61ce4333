"""Files of reviews in PETER's format (Li et al., 2021), one record per review:

    {"user": "u1", "item": "i1", "rating": 4,
     "template": ["pool", "great", "the pool is great", 1]}

`template` is (feature, opinion, sentence, sentiment): the sentence of the review that says
something of a feature, and whether it is meant well (1) or not (-1). The authors give out a pickle
of a list of such dictionaries, which is to be written as JSON lines first
(`docs/prepared_data.md`). A bad row is left out and counted with its reason, never mended.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.data.splits import PARTS
from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import text_of

_SUFFIXES = (".jsonl", ".json")


@dataclasses.dataclass(frozen=True, slots=True)
class Review:
    """One review.

    Attributes:
      row: its index in the file, from 0.
      part: 'train', 'validation' or 'test'; None without index files.
      user, item: ids, as texts.
      feature: what the sentence speaks of.
      opinion: the word that says how.
      sentence: the explanation to be generated.
    """

    row: int
    part: str | None
    user: str
    item: str
    feature: str
    opinion: str
    sentence: str


@dataclasses.dataclass
class ReviewReport:
    """What was left out: how many rows, or entries of index files, by reason, and the first one."""

    num_rejected: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    def reject(self, reason: str, example: str, times: int = 1) -> None:
        """Counts something that was left out."""
        self.num_rejected[reason] += times
        self.examples.setdefault(reason, example)


class _BadRow(Exception):
    """Why a row is left out: a reason that is counted, and what stands in the row."""

    def __init__(self, reason: str, found: object = None):
        super().__init__(reason)
        self.reason = reason
        self.found = found


def read_reviews(
    path: str | Path, index_dir: str | Path | None = None
) -> tuple[list[Review], ReviewReport]:
    """The reviews of a file, in its order, and what was left out.

    Args:
      path: `.jsonl` or `.json` (JSON lines, UTF-8; blank lines are no rows).
      index_dir: the folder of the three index files; None gives all rows, with `part=None`.

    Raises:
      DataError: a file is missing, damaged or of another format; an index file holds something
        that is not a row number; a row is in two parts (that would leak); there is no review to
        give.
    """
    path, report = Path(path), ReviewReport()
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{path}: the name of a file of reviews must end in {', '.join(_SUFFIXES)}; "
            "docs/prepared_data.md says how a pickle is written as JSON lines"
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    parts = None if index_dir is None else _read_index(Path(index_dir), report)
    reviews, num_rows = [], 0
    for row, record in enumerate(_json_rows(path)):
        num_rows += 1
        part = None if parts is None else parts.pop(row, None)
        try:
            if parts is not None and part is None:
                raise _BadRow("in no index file")
            if isinstance(record, _BadRow):
                raise record
            reviews.append(_review(row, part, record))
        except _BadRow as bad:
            found = "" if bad.found is None else f": {reprlib.repr(bad.found)}"
            report.reject(bad.reason, f"{path.name}, row {row}{found}")
    if parts:
        row = min(parts)
        example = f"{parts[row]}.index: {row}, but the file has {num_rows} rows"
        report.reject("no such row", example, len(parts))
    if not num_rows:
        raise DataError(f"{path} has no rows")
    if not reviews:
        reasons = [
            f"{reason} ({times}; {report.examples[reason]})"
            for reason, times in report.num_rejected.most_common()
        ]
        raise DataError(
            f"{path} has {num_rows} rows, but none gives a review: {'; '.join(reasons)}"
        )
    return reviews, report


def _json_rows(path: Path) -> Iterator[Any]:
    """The value of each line, or a `_BadRow` for a line that is none."""
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield _BadRow("not UTF-8", line[:60])
            except (ValueError, RecursionError):
                yield _BadRow("not JSON", line[:60].decode("utf-8", "replace").rstrip())


def _review(row: int, part: str | None, record: Any) -> Review:
    if not isinstance(record, dict):
        raise _BadRow("not a dictionary", _kind(record))
    template = _value(record, "template")
    if not isinstance(template, (list, tuple)) or len(template) != 4:
        raise _BadRow("template is not (feature, opinion, sentence, sentiment)", template)
    feature, opinion, sentence, _ = template
    return Review(
        row=row,
        part=part,
        user=_identifier(record, "user"),
        item=_identifier(record, "item"),
        feature=_text(feature, "feature"),
        opinion=_text(opinion, "opinion", may_be_empty=True),
        sentence=_text(sentence, "sentence"),
    )


def _value(record: Mapping[Any, Any], name: str) -> Any:
    if record.get(name) is None:
        raise _BadRow(f"{name} is missing")
    return record[name]


def _identifier(record: Mapping[Any, Any], name: str) -> str:
    value = _value(record, name)
    # Within 64 bits: Python refuses to write out integers of thousands of digits.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    return _text(value, name)


def _text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"{name} is not a text", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # Half of a surrogate pair: every later writer of the text would fail on it.
        raise _BadRow(f"{name} is not valid Unicode", value) from None
    if not may_be_empty and not text_of(value):
        raise _BadRow(f"{name} is empty")
    return value


def _kind(value: Any) -> str:
    return type(value).__name__


def _read_index(directory: Path, report: ReviewReport) -> dict[int, str]:
    """Row -> part. Counts rows that one file repeats; raises DataError for rows of two files."""
    found: dict[int, str] = {}
    twice: dict[int, tuple[str, str]] = {}
    for part in PARTS:
        path = directory / f"{part}.index"
        rows, counts = np.unique(_index_rows(path), return_counts=True)
        if len(repeated := rows[counts > 1]):
            times = int((counts - 1).sum())
            report.reject("repeated in an index file", f"{path.name}: {repeated[0]}", times)
        if len(negative := rows[rows < 0]):
            # Python would count them from the end.
            report.reject("no such row", f"{path.name}: {negative[0]}", len(negative))
        for row in rows[rows >= 0].tolist():
            if row in found:
                twice[row] = (found[row], part)
            found[row] = part
    if twice:
        row = min(twice)
        raise DataError(
            f"{directory}: {len(twice)} rows are in two splits, which lets a test be learnt by "
            f"heart; the first is row {row}, in {twice[row][0]}.index and {twice[row][1]}.index"
        )
    if not found:
        raise DataError(f"{directory}: the index files name no row")
    return found


def _index_rows(path: Path) -> np.ndarray:
    try:
        tokens = path.read_text(encoding="ascii").split()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must hold row numbers with spaces between them") from error
    rows = []
    for token in tokens:
        try:
            rows.append(np.int64(int(token)))
        except (ValueError, OverflowError):
            raise DataError(
                f"{path} must hold row numbers with spaces between them, but holds {token[:40]!r}"
            ) from None
    return np.asarray(rows, np.int64)
