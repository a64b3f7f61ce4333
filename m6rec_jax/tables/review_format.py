"""Reviews in the public format of PETER (Li et al., 2021): who wrote what of which item, and why.

A file holds one record per review:

    {"user": "u1", "item": "i1", "rating": 4,
     "template": ["pool", "great", "the pool is great", 1]}

`template` is (feature, opinion, sentence, sentiment): the sentence of the review that says
something of a feature, and whether it is meant well (1) or not (-1). In the wild it is a pickle of
a list of such dictionaries (`reviews.pickle`, read by `restricted_pickle`); JSON lines of the same
records (`reviews.jsonl`) are read as well, and are the ones to prefer: they are streamed, a pickle
is held in memory as a whole.

Beside it, a folder of `train.index`, `validation.index` and `test.index` says which rows (from 0)
belong to which split, as integers with white space between them.

Records are read as they come: a bad row is left out and counted with its reason, never mended.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m6rec_jax.errors import DataError
from m6rec_jax.tables import restricted_pickle

SPLITS = ("train", "validation", "test")
PICKLE_SUFFIXES = (".pickle", ".pkl")
JSON_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Review:
    """One review.

    Attributes:
      row: its place in the file, from 0.
      split: 'train', 'validation' or 'test'; None when read without index files.
      user, item: ids, as texts.
      rating: as the file has it, often 1 to 5.
      feature: what the sentence speaks of.
      opinion: the word that says how.
      sentence: the explanation to be generated.
      sentiment: 1 for well, -1 for ill.
    """

    row: int
    split: str | None
    user: str
    item: str
    rating: float
    feature: str
    opinion: str
    sentence: str
    sentiment: int


@dataclass
class ReviewReport:
    """What `read_reviews` met; complete once its stream has ended.

    Attributes:
      num_rows: rows of the file.
      num_given: split -> reviews handed out; the key is None without index files.
      num_other_splits: good or bad rows of splits that were not asked for.
      num_unlisted: rows that no index file names; they are left out.
      num_rejected: reason -> rows (or entries of index files) that were left out for it.
      examples: reason -> where it was met first.
    """

    num_rows: int = 0
    num_given: Counter[str | None] = field(default_factory=Counter)
    num_other_splits: int = 0
    num_unlisted: int = 0
    num_rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

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
    path: str | Path,
    index_dir: str | Path | None = None,
    *,
    splits: Collection[str] = SPLITS,
    report: ReviewReport | None = None,
) -> Iterator[Review]:
    """Streams the reviews of a file, in its order.

    The arguments and the index files are checked at once, the rows as they are asked for.

    Args:
      path: `.pickle`, `.pkl`, `.jsonl` or `.json` (JSON lines, UTF-8; blank lines are no rows).
      index_dir: the folder of the three index files; None gives all rows, with `split=None`.
      splits: which splits to give; all three index files are read in any case.
      report: is filled while the stream is read.

    Raises:
      DataError: a file is missing, damaged or of another format; a pickle asks for more than
        builtin containers and scalars; an index file holds something that is not a row number; a
        row is in two splits (that would leak); at the end, when there was no review to give.
      ValueError: an unknown split.
    """
    path = Path(path)
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise ValueError(f"splits must be among {', '.join(SPLITS)}, got {', '.join(unknown)}")
    if path.suffix.lower() not in (*PICKLE_SUFFIXES, *JSON_SUFFIXES):
        raise DataError(
            f"{path}: the name of a file of reviews must end in "
            f"{', '.join((*PICKLE_SUFFIXES, *JSON_SUFFIXES))}"
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    report = ReviewReport() if report is None else report
    index = None if index_dir is None else _SplitIndex.read(Path(index_dir), report)
    return _stream(path, index, frozenset(splits), report)


def _stream(
    path: Path, index: _SplitIndex | None, splits: frozenset[str], report: ReviewReport
) -> Iterator[Review]:
    rows = _pickle_rows(path) if path.suffix.lower() in PICKLE_SUFFIXES else _json_rows(path)
    num_given = 0
    for row, record in enumerate(rows):
        report.num_rows += 1
        split = None
        if index is not None:
            split = index.split_of(row)
            if split is None:
                report.num_unlisted += 1
                continue
            if split not in splits:
                report.num_other_splits += 1
                continue
        try:
            if isinstance(record, _BadRow):
                raise record
            review = _review(row, split, record)
        except _BadRow as bad:
            found = "" if bad.found is None else f": {_shown(bad.found)}"
            report.reject(bad.reason, f"{path.name}, row {row}{found}")
            continue
        num_given += 1
        report.num_given[split] += 1
        yield review
    if index is not None:
        index.reject_beyond(report.num_rows, report)
    if not report.num_rows:
        raise DataError(f"{path} has no rows")
    if not num_given:
        reasons = [
            f"{reason} ({times}; {report.examples[reason]})"
            for reason, times in report.num_rejected.most_common()
        ]
        wanted = "" if index is None else f" of {', '.join(s for s in SPLITS if s in splits)}"
        raise DataError(
            f"{path} has {report.num_rows} rows, but none gives a review{wanted}: "
            f"{'; '.join(reasons) or 'the index files name none'}"
        )


# ---- rows of files


def _pickle_rows(path: Path) -> Iterator[Any]:
    records = restricted_pickle.load(path)
    if not isinstance(records, (list, tuple)):
        raise DataError(f"{path} must hold a list of reviews, but holds a {_kind(records)}")
    yield from records


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


# ---- one record


def _review(row: int, split: str | None, record: Any) -> Review:
    if not isinstance(record, dict):
        raise _BadRow("not a dictionary", _kind(record))
    template = _value(record, "template")
    if not isinstance(template, (list, tuple)) or len(template) != 4:
        raise _BadRow("template is not (feature, opinion, sentence, sentiment)", template)
    feature, opinion, sentence, sentiment = template
    return Review(
        row=row,
        split=split,
        user=_identifier(record, "user"),
        item=_identifier(record, "item"),
        rating=_number(_value(record, "rating"), "rating"),
        feature=_text(feature, "feature"),
        opinion=_text(opinion, "opinion", may_be_empty=True),
        sentence=_text(sentence, "sentence"),
        sentiment=_sentiment(sentiment),
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
    if not may_be_empty and not value.strip():
        raise _BadRow(f"{name} is empty")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _BadRow(f"{name} is not a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _BadRow(f"{name} is not a finite number", value)
    return number


def _sentiment(value: Any) -> int:
    number = _number(value, "sentiment")
    if number not in (-1.0, 1.0):
        raise _BadRow("sentiment is neither 1 nor -1", value)
    return int(number)


def _shown(value: object) -> str:
    """A value for a message: short, however large, deep or circular it is."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):
        return _kind(value)


def _kind(value: Any) -> str:
    return type(value).__name__


# ---- index files


class _SplitIndex:
    """Which split each row is in; rows are asked for in ascending order."""

    def __init__(self, rows: npt.NDArray[np.int64], codes: npt.NDArray[np.int64]):
        self._rows = rows  # ascending, each once
        self._codes = codes  # places in SPLITS
        self._next = 0

    @classmethod
    def read(cls, directory: Path, report: ReviewReport) -> _SplitIndex:
        """Reads the three files, counts rows that one file repeats, refuses rows of two files."""
        parts = []
        for split in SPLITS:
            path = directory / f"{split}.index"
            rows, counts = np.unique(_index_rows(path), return_counts=True)
            repeated = np.flatnonzero(counts > 1)
            if repeated.size:
                report.reject(
                    "repeated in an index file",
                    f"{path.name}: {rows[repeated[0]]}",
                    int((counts - 1).sum()),
                )
            negative = int((rows < 0).sum())
            if negative:
                # Python would count them from the end.
                report.reject("no such row", f"{path.name}: {rows[0]}", negative)
            parts.append(rows[rows >= 0])
        rows = np.concatenate(parts)
        codes = np.repeat(np.arange(len(SPLITS)), [part.size for part in parts])
        order = np.argsort(rows, kind="stable")
        rows, codes = rows[order], codes[order]
        twice = np.flatnonzero(rows[1:] == rows[:-1])
        if twice.size:
            place = twice[0]
            raise DataError(
                f"{directory}: {twice.size} rows are in two splits, which lets a test be learnt by "
                f"heart; the first is row {rows[place]}, in {SPLITS[codes[place]]}.index and "
                f"{SPLITS[codes[place + 1]]}.index"
            )
        if not rows.size:
            raise DataError(f"{directory}: the index files name no row")
        return cls(rows, codes)

    def split_of(self, row: int) -> str | None:
        if self._next < self._rows.size and self._rows[self._next] == row:
            self._next += 1
            return SPLITS[self._codes[self._next - 1]]
        return None

    def reject_beyond(self, num_rows: int, report: ReviewReport) -> None:
        beyond = self._rows.size - self._next
        if beyond:
            name = f"{SPLITS[self._codes[self._next]]}.index"
            example = f"{name}: {self._rows[self._next]}, but the file has {num_rows} rows"
            report.reject("no such row", example, beyond)


def _index_rows(path: Path) -> npt.NDArray[np.int64]:
    try:
        tokens = path.read_text(encoding="ascii").split()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must hold row numbers with spaces between them") from error
    try:
        return np.array([int(token) for token in tokens], dtype=np.int64)
    except (ValueError, OverflowError):
        bad = next(token for token in tokens if not _is_row_number(token))
        raise DataError(
            f"{path} must hold row numbers with spaces between them, but holds {bad[:40]!r}"
        ) from None


def _is_row_number(token: str) -> bool:
    try:
        return abs(int(token)) < 2**63
    except ValueError:
        return False
