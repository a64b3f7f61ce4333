"""Corpora of reviews in PETER's format (Li et al., 2021): explanations to write.

A folder with the files and a `reviews.json`:

    {"name": "tripadvisor", "file": "reviews.jsonl", "index": "1"}

The file holds one record per review, as a line of JSON:

    {"user": "u1", "item": "i1", "rating": 4,
     "template": ["pool", "great", "the pool is great", 1]}

`template` is (feature, opinion, sentence, sentiment): the sentence of the review that says
something of a feature, and whether it is meant well (1) or not (-1). The authors give out a pickle
of a list of such dictionaries, to be written as JSON lines first (`docs/prepared_data.md`).

`index` is a folder of `train.index`, `validation.index` and `test.index` with the rows (from 0) of
each split, as integers with white space between them; rows in none of them are left out. Without it
every review goes to a split by a hash of its row. Optional: `description`, `licence`.

Users and items have no text of their own, so they are described by their *training* reviews: what a
user writes of, and what others say of an item. A training review is rendered without itself. What
is to be written is the sentence about one feature, which is given as PETER+ and M6-Rec give it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m6rec_jax.data.corpora import Corpus, ViewRow, json_lines
from m6rec_jax.data.schema import load_json, parsed
from m6rec_jax.data.splits import PARTS
from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import text_of

REVIEWS_FILE = "reviews.json"
VIEW = "explanations"
# Features of a user, and words about an item, at most.
_MOST = 5


@dataclasses.dataclass(frozen=True, slots=True)
class ReviewSpec:
    """The object of `reviews.json`. See the module's docstring."""

    name: str
    file: str
    index: str | None = None
    description: str = ""
    licence: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Review:
    """One review.

    Attributes:
      row: its index in the file, from 0.
      split: as the index files say; "" without them.
      user, item: ids, as texts.
      feature: what the sentence speaks of.
      remark: opinion and feature, such as "great pool".
      sentence: the explanation to be generated.
    """

    row: int
    split: str
    user: str
    item: str
    feature: str
    remark: str
    sentence: str


class Reviews(Corpus):
    """A folder of reviews; raises DataError where `reviews.json` is missing or does not fit."""

    records = "reviews"

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        path = directory / REVIEWS_FILE
        spec = parsed(load_json(path), ReviewSpec, str(path))
        files = [path, directory / spec.file]
        if spec.index is not None:
            files += [directory / spec.index / f"{split}.index" for split in PARTS]
        super().__init__(spec.name, files, (VIEW,))

    @functools.cached_property
    def reviews(self) -> list[Review]:
        """In the order of the file, without those in no index file.

        Raises:
          DataError: a file is missing or damaged, a line is no review, or an index file names a row
            that is not there or that another one names, too (that would leak).
        """
        _, path, *index_files = self.files
        split_of, reviews = _read_index(index_files), []
        for row, (number, record) in enumerate(json_lines(path, "review in PETER's format")):
            split = split_of.pop(row, "")
            try:
                user, item = str(record["user"] or ""), str(record["item"] or "")
                feature, opinion, sentence, _ = record["template"]
                if not all(map(text_of, (user, item, feature, sentence))):
                    raise ValueError("user, item, feature and sentence must not be empty")
                if not all(isinstance(text, str) for text in (feature, opinion, sentence)):
                    raise ValueError("feature, opinion and sentence must be texts")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number} is no review in PETER's format "
                    f"({type(error).__name__}: {error}); {REVIEWS_FILE} names this file"
                ) from error
            if split or not index_files:
                remark = f"{opinion} {feature}".strip()
                reviews.append(Review(row, split, user, item, feature, remark, sentence))
        if split_of:
            row = min(split_of)
            raise DataError(f"{path} has no row {row}, which {split_of[row]}.index names")
        if not reviews:
            raise DataError(f"{path} holds no review")
        return reviews

    def split_names(self) -> Iterator[tuple[str, str]]:
        return ((str(review.row), review.split) for review in self.reviews)

    def rows(
        self, record_splits: Sequence[str], folder: Path
    ) -> tuple[Iterator[ViewRow], dict[str, Any]]:
        return self._rows(record_splits), {}

    def _rows(self, record_splits: Sequence[str]) -> Iterator[ViewRow]:
        features: dict[str, Counter[str]] = defaultdict(Counter)
        remarks: dict[str, Counter[str]] = defaultdict(Counter)
        for review, split in zip(self.reviews, record_splits, strict=True):
            if split == "train":
                features[review.user][review.feature] += 1
                remarks[review.item][review.remark] += 1
        for review, split in zip(self.reviews, record_splits, strict=True):
            # A training review would otherwise say what is to be written.
            itself = int(split == "train")
            row = {
                "text_id": str(review.row),
                "text_index": review.row,
                "user_id": review.user,
                "item_indices": [],
                "seen_indices": [],
                "liked_indices": [],
                "source": [
                    _most_common("writes of", features[review.user], review.feature, itself),
                    _most_common("others say", remarks[review.item], review.remark, itself),
                ],
                "prefix": f"{review.feature}:",
                "target": review.sentence,
                "features": [review.feature],
            }
            yield ViewRow(VIEW, split, row)

    def summary(self) -> str:
        counts = Counter(review.split or "without a split" for review in self.reviews)
        given = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        return f"{self.name}: {len(self.reviews):,} reviews ({given})"


def _most_common(words: str, counts: Counter[str], name: str, fewer: int) -> str:
    """`words` and the names counted most, where `name` counts `fewer` times less."""
    counts = counts.copy()
    counts[name] -= fewer
    # Of equals the first that was met, so that the order of the file decides, not hashing.
    names = [name for name, count in counts.most_common() if count > 0][:_MOST]
    return f"{words} {', '.join(names)}" if names else ""


def _read_index(paths: Sequence[Path]) -> dict[int, str]:
    """Row -> split."""
    splits: dict[int, str] = {}
    for path in paths:
        for word in path.read_text("utf-8", errors="replace").split():
            if not (word.isascii() and word.isdigit()):
                raise DataError(
                    f"{path} must hold row numbers from 0 with white space between them, and holds "
                    f"{word[:40]!r}"
                )
            if (other := splits.setdefault(int(word), path.stem)) != path.stem:
                raise DataError(
                    f"{path} names row {word}, as {other}.index does; a test must not be trained on"
                )
    return splits
