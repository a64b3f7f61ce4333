"""`m6rec data prepare` for reviews in PETER's format (Li et al., 2021): explanations to write.

A folder with the files and a `reviews.json`:

    {"name": "tripadvisor", "file": "reviews.jsonl", "index": "1"}

The file holds one record per review, as a line of JSON:

    {"user": "u1", "item": "i1", "rating": 4,
     "template": ["pool", "great", "the pool is great", 1]}

`template` is (feature, opinion, sentence, sentiment): the sentence of the review that says
something of a feature, and whether it is meant well (1) or not (-1). The authors give out a pickle
of a list of such dictionaries, to be written as JSON lines first (`docs/prepared_data.md`).

`index` is a folder of `train.index`, `validation.index` and `test.index` with the rows (from 0) of
each part, as integers with white space between them; rows in none of them are left out. Without it
every review goes to a part by a hash of its row. Optional: `description`, `licence`.

Users and items have no text of their own, so they are described by their *training* reviews: what a
user writes of, and what others say of an item. A training review is rendered without itself. What
is to be written is the sentence about one feature, which is given as PETER+ and M6-Rec give it.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import numpy as np

from m6rec_jax.data import splits
from m6rec_jax.data.corpora import numbered_lines
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.schema import load_json, parsed
from m6rec_jax.data.splits import PARTS, Split
from m6rec_jax.data.text_views import ViewRow, prepare_texts
from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import text_of

REVIEWS_FILE = "reviews.json"
VIEW = "explanations"
# Features of a user, and words about an item, at most.
_MOST = 5


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
        """Reads `directory/reviews.json`; raises DataError where it is missing or does not fit."""
        path = Path(directory) / REVIEWS_FILE
        return parsed(load_json(path), cls, str(path))


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


def review_summary(folder: str | Path) -> str:
    """Reads all reviews and says how many there are; raises DataError at the first broken row."""
    spec = ReviewSpec.load(folder)
    reviews = read_reviews(Path(folder), spec)
    counts = Counter(review.part for review in reviews)
    given = ", ".join(f"{count:,} {part or 'without a split'}" for part, count in counts.items())
    return f"{spec.name}: {len(reviews):,} reviews ({given})"


@gin.configurable
def prepare_reviews(
    folder: str | Path,
    out: str | Path,
    split: str = "by_group",
    progress: bool = True,
) -> Prepared:
    """Renders reviews as texts to write: the view 'explanations'.

    Args:
      folder: with `reviews.json`.
      out: the TFDS data_dir to write to.
      split: 'by_group', with options where there are no index files (`by_group:seed=1`).
      progress: whether to show bars.

    Raises:
      DataError: something is wrong with the folder, or a part is empty.
    """
    folder = Path(folder)
    spec, parsed = ReviewSpec.load(folder), Split.parse(split)
    if parsed.kind != "by_group" or (spec.index and parsed.name != "by_group"):
        raise DataError(
            f"{folder / REVIEWS_FILE}: split {split!r} is impossible; the index files say which "
            "review is where, and without them 'by_group' draws it"
        )
    files = [folder / REVIEWS_FILE, folder / spec.file]
    if spec.index:
        files += [folder / spec.index / f"{part}.index" for part in PARTS]

    def render(_: Path) -> tuple[Iterator[ViewRow], dict[str, Any]]:
        reviews = read_reviews(folder, spec)
        manifest = {"review_spec": dataclasses.asdict(spec)}
        return _rows(reviews, _parts(reviews, parsed)), manifest

    return prepare_texts(out, spec.name, parsed, (VIEW,), files, {}, render, progress)


class TrainingReviews:
    """What the reviews of the training part say of users and items."""

    def __init__(self, reviews: list[Review]) -> None:
        self._of_user: dict[str, Counter[str]] = defaultdict(Counter)
        self._of_item: dict[str, Counter[str]] = defaultdict(Counter)
        for review in reviews:
            self._of_user[review.user][review.feature] += 1
            self._of_item[review.item][_remark(review)] += 1

    def source(self, review: Review, is_own: bool) -> list[str]:
        """User and item in words.

        Args:
          review: of the user about the item.
          is_own: whether it is one of the training reviews; then it is left out.

        Returns:
          Two segments, of the user and of the item; empty where nothing is known.
        """
        features = self._of_user.get(review.user, Counter()).copy()
        remarks = self._of_item.get(review.item, Counter()).copy()
        if is_own:
            features[review.feature] -= 1
            remarks[_remark(review)] -= 1
        return [_listed("writes of", features), _listed("others say", remarks)]


def _remark(review: Review) -> str:
    return f"{review.opinion} {review.feature}".strip()


def _listed(words: str, counts: Counter[str]) -> str:
    # Of equals the first that was met, so that the order of the file decides, not hashing.
    found = [name for name, count in counts.most_common() if count > 0][:_MOST]
    return f"{words} {', '.join(found)}" if found else ""


def read_reviews(folder: Path, spec: ReviewSpec) -> list[Review]:
    """The reviews of a folder, in the order of its file, without those in no index file.

    Raises:
      DataError: a file is missing or damaged, a line is no review, or an index file names a row
        that is not there or that another one names, too (that would leak).
    """
    path, reviews = folder / spec.file, []
    parts = _read_index(folder / spec.index) if spec.index else None
    for row, (number, line) in enumerate(numbered_lines(path)):
        part = None if parts is None else parts.pop(row, "")
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # a ValueError for half a character
            user, item = str(record["user"] or ""), str(record["item"] or "")
            feature, opinion, sentence, _ = record["template"]
            if not all(map(text_of, (user, item, feature, sentence))):
                raise ValueError("user, item, feature and sentence must not be empty")
            if not all(isinstance(text, str) for text in (feature, opinion, sentence)):
                raise ValueError("feature, opinion and sentence must be texts")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is no review in PETER's format "
                f"({type(error).__name__}: {error}); {REVIEWS_FILE} names this file"
            ) from error
        if part != "":
            reviews.append(Review(row, part, user, item, feature, opinion, sentence))
    if parts:
        row = min(parts)
        raise DataError(f"{path} has no row {row}, which {spec.index}/{parts[row]}.index names")
    if not reviews:
        raise DataError(f"{path} holds no review")
    return reviews


def _read_index(folder: Path) -> dict[int, str]:
    """Row -> part."""
    parts: dict[int, str] = {}
    for part in PARTS:
        path = folder / f"{part}.index"
        for word in path.read_text("utf-8", errors="replace").split():
            if not (word.isascii() and word.isdigit()):
                raise DataError(
                    f"{path} must hold row numbers from 0 with white space between them, and holds "
                    f"{word[:40]!r}"
                )
            if parts.setdefault(int(word), part) != part:
                raise DataError(
                    f"{folder}: row {word} is in {parts[int(word)]}.index and in {part}.index, "
                    "which lets a test be learnt by heart"
                )
    return parts


def _parts(reviews: list[Review], split: Split) -> list[str]:
    codes = splits.by_name([str(review.row) for review in reviews], **split.arguments())
    drawn = zip(reviews, codes.tolist(), strict=True)
    found = [review.part or PARTS[code] for review, code in drawn]
    splits.check_parts(np.array([PARTS.index(part) for part in found]), split.name, "reviews")
    return found


def _rows(reviews: list[Review], parts: list[str]) -> Iterator[ViewRow]:
    pairs = list(zip(reviews, parts, strict=True))
    training = TrainingReviews([review for review, part in pairs if part == "train"])
    for review, part in pairs:
        row = {
            "text_id": str(review.row),
            "text_index": review.row,
            "user_id": review.user,
            "item_indices": [],
            "seen_indices": [],
            "liked_indices": [],
            "source": training.source(review, part == "train"),
            "prefix": f"{review.feature}:",
            "target": review.sentence,
            "features": [review.feature],
        }
        yield ViewRow(VIEW, part, row)
