"""`m6rec data prepare` for reviews in PETER's format: explanations to write.

A folder with the files (see `review_format`) and a `reviews.json`:

    {"name": "tripadvisor", "file": "reviews.pickle", "index": "1"}

`index` is the folder of `train.index`, `validation.index` and `test.index`; without it every review
goes to a part by a hash of its row. Optional: `description`, `licence`.

Users and items have no text of their own, so they are told by their *training* reviews: what a user
writes of, and what others say of an item. A training review is told without itself. What is to be
written is the sentence about one feature, which is given as PETER+ and M6-Rec give it; with
`ReviewOptions.tell_feature = False` it is not, as in PETER.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
import reprlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import gin
import numpy as np
import numpy.typing as npt

from m6rec_jax.data import splits
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.schema import Section, load_json
from m6rec_jax.data.splits import PARTS, Split
from m6rec_jax.data.text_views import TextViews, ViewRow, files_fingerprint
from m6rec_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)

REVIEWS_FILE = "reviews.json"
VIEW = "explanations"


@dataclasses.dataclass(frozen=True, slots=True)
class ReviewSpec:
    """The parsed `reviews.json`.

    Attributes:
      name: of the data set.
      file: of the reviews, in the folder.
      index: folder of the index files, in the folder; None: parts are drawn.
    """

    name: str
    file: str
    index: str | None = None
    description: str = ""
    licence: str = ""

    @classmethod
    def load(cls, directory: str | Path) -> ReviewSpec:
        """Reads `directory/reviews.json`.

        Raises:
          DataError: it is missing, is not JSON, or does not fit.
        """
        path = Path(directory) / REVIEWS_FILE
        top = Section(load_json(path), str(path), "")
        spec = cls(
            name=top.text("name"),
            file=top.text("file"),
            index=top.optional_text("index"),
            description=top.optional_text("description") or "",
            licence=top.optional_text("licence") or "",
        )
        top.finish()
        return spec


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ReviewOptions:
    """How reviews are told. Set in gin: `ReviewOptions.tell_feature = False`.

    Attributes:
      tell_feature: whether a text begins with the feature that it is about.
      most: features of a user, and words about an item, at most.
    """

    tell_feature: bool = True
    most: int = 5

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"ReviewOptions.most = {self.most} must be at least 1")


def review_summary(folder: str | Path) -> str:
    """Reads all reviews and says how many there are and what was left out.

    Raises:
      DataError: as `review_format.read_reviews`.
    """
    spec, report = ReviewSpec.load(folder), ReviewReport()
    _read(Path(folder), spec, report)
    given = ", ".join(
        f"{count:,} {part or 'without a split'}" for part, count in report.num_given.items()
    )
    left_out = "".join(
        f"; left out: {count:,} ({reason}; {report.examples[reason]})"
        for reason, count in report.num_rejected.items()
    )
    return f"{spec.name}: {sum(report.num_given.values()):,} reviews ({given}){left_out}"


@gin.configurable
def prepare_reviews(
    folder: str | Path,
    out: str | Path,
    split: str = "by_group",
    options: ReviewOptions | None = None,
    progress: bool = True,
) -> Prepared:
    """Renders reviews as texts to write.

    Args:
      folder: with `reviews.json`.
      out: the TFDS data_dir to write to.
      split: 'by_group', with options where there are no index files (`by_group:seed=1`).
      options: None for gin's `ReviewOptions` or the defaults.
      progress: whether to show bars.

    Returns:
      what was written: the view 'explanations'.

    Raises:
      DataError: something is wrong with the folder, or a part is empty.
    """
    folder, options = Path(folder), options or ReviewOptions()
    spec, parsed = ReviewSpec.load(folder), Split.parse(split)
    if parsed.kind != "by_group" or (spec.index and parsed.options):
        raise DataError(
            f"{folder / REVIEWS_FILE}: split {split!r} is impossible; the index files say which "
            "review is where, and without them 'by_group' draws it"
        )
    settings = [dict(parsed.options), dataclasses.asdict(options)]
    files = [folder / REVIEWS_FILE, folder / spec.file]
    if spec.index:
        files += [folder / spec.index / f"{part}.index" for part in SPLITS]
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} does not exist ({REVIEWS_FILE} names it)")
    made = TextViews(Path(out), spec.name, parsed.name, (VIEW,), files_fingerprint(files, settings))
    if made.is_done():
        log.info("%s is prepared already", made.folder)
        return made.open()
    report = ReviewReport()
    reviews = _read(folder, spec, report)
    parts = _parts(reviews, parsed)
    manifest = {
        "review_spec": dataclasses.asdict(spec),
        "split": {"name": parsed.name, "kind": parsed.kind, "options": dict(parsed.options)},
        "options": dataclasses.asdict(options),
        "left_out": dict(report.num_rejected),
    }
    return made.write(_rows(reviews, parts, options), manifest, progress=progress)


class TrainingReviews:
    """What training reviews say of users and items.

    Args:
      reviews: of the training part.
    """

    def __init__(self, reviews: list[Review]) -> None:
        self._of_user: dict[str, Counter[str]] = defaultdict(Counter)
        self._of_item: dict[str, Counter[str]] = defaultdict(Counter)
        for review in reviews:
            self._of_user[review.user][review.feature] += 1
            self._of_item[review.item][_remark(review)] += 1

    def source(self, review: Review, is_own: bool, most: int) -> list[str]:
        """User and item in words.

        Args:
          review: of the user about the item.
          is_own: whether it is one of the training reviews; then it is told without itself.
          most: see `ReviewOptions`.

        Returns:
          Two segments, of the user and of the item; empty where nothing is known.
        """
        features = self._of_user.get(review.user, Counter()).copy()
        remarks = self._of_item.get(review.item, Counter()).copy()
        if is_own:
            features[review.feature] -= 1
            remarks[_remark(review)] -= 1
        return [
            _told("writes of", features, most),
            _told("others say", remarks, most),
        ]


def _remark(review: Review) -> str:
    return f"{review.opinion} {review.feature}".strip()


def _told(words: str, counts: Counter[str], most: int) -> str:
    # Of equals the first that was met, so that the order of the file decides, not hashing.
    found = [name for name, count in counts.most_common() if count > 0][:most]
    return f"{words} {', '.join(found)}" if found else ""


def _read(folder: Path, spec: ReviewSpec, report: ReviewReport) -> list[Review]:
    index = folder / spec.index if spec.index else None
    return list(read_reviews(folder / spec.file, index, report=report))


def _parts(reviews: list[Review], split: Split) -> list[str]:
    if reviews[0].split is not None:
        found = [str(review.split) for review in reviews]
    else:
        codes = splits.by_group([str(review.row) for review in reviews], **split.arguments())
        found = [PARTS[code] for code in codes.tolist()]
    for part in PARTS:
        if part not in found:
            raise DataError(f"part {part!r} of the {len(reviews):,} reviews is empty")
    return found


def _rows(reviews: list[Review], parts: list[str], options: ReviewOptions) -> Iterator[ViewRow]:
    pairs = list(zip(reviews, parts, strict=True))
    training = TrainingReviews([review for review, part in pairs if part == "train"])
    for review, part in pairs:
        yield ViewRow(VIEW, part, _row(review, part, training, options))


def _row(
    review: Review, part: str, training: TrainingReviews, options: ReviewOptions
) -> dict[str, Any]:
    return {
        "text_id": str(review.row),
        "text_index": review.row,
        "user_id": review.user,
        "item_indices": [],
        "seen_indices": [],
        "source": training.source(review, part == "train", options.most),
        "prefix": f"{review.feature}:" if options.tell_feature else "",
        "target": review.sentence,
        "features": [review.feature],
    }


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
    records = load_pickle(path)
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


# What builtin containers need by name: in older protocols sets are called for, and Python 2's name
# of the module stands in them. All else (dict, list, str, int, ...) has operations of its own.
_ALLOWED = {
    (module, name): kind
    for module in ("builtins", "__builtin__")
    for name, kind in (("set", set), ("frozenset", frozenset))
}


class _Refused(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        # UTF-8 for the byte strings that Python 2 pickled as text.
        super().__init__(file, encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a persistent object")


def load_pickle(path: str | Path) -> Any:
    """Reads the first object of a pickle file, builtin containers and scalars only.

    Raises:
      DataError: the file does not exist, asks for anything else (the message names it), or is not a
        whole pickle.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except _Refused as error:
        raise DataError(
            f"{path} asks for {error}. A pickle may run any program, so only lists, dictionaries, "
            "texts and numbers are read; write the rows as JSON lines if you trust this file"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # Nonsense for bytes makes the unpickler raise nearly anything.
        raise DataError(f"{path} is not a whole pickle: {error or type(error).__name__}") from error
