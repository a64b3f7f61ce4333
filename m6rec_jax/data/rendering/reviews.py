"""Corpora of reviews in PETER's format (Li et al., 2021): explanations to write.

A folder with a file and a `reviews.json`:

    {"name": "tripadvisor", "file": "reviews.jsonl"}

The file holds one record per review, as a line of JSON (`docs/prepared_data.md` makes it of what
the authors give out):

    {"user": "u1", "item": "i1", "rating": 4, "split": "train",
     "template": ["pool", "great", "the pool is great", 1]}

`template` is (feature, opinion, sentence, sentiment): the sentence of the review that says
something of a feature, and whether it is meant well (1) or not (-1). Without `split` a review goes
to a split by a hash of its row. Optional in `reviews.json`: `description`, `licence`.

Users and items have no text of their own, so they are described by their *training* reviews: what a
user writes of, and what others say of an item. A training review is rendered without itself. What
is to be written is the sentence about one feature, which is given as PETER+ and M6-Rec give it.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from m6rec_jax.data.dataset.schema import load_json, parsed
from m6rec_jax.data.rendering.corpora import Corpus, ViewRow, json_lines
from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import text_of

REVIEWS_FILE = "reviews.json"
VIEW = "explanations"
# Features of a user, and words about an item, at most.
_MOST = 5


class ReviewSpec(msgspec.Struct, frozen=True):
    """The object of `reviews.json`. See the module's docstring."""

    name: str
    file: str
    description: str = ""
    licence: str = ""


class Review(msgspec.Struct, frozen=True):
    """One review, as a line of the file has it."""

    user: str | int
    item: str | int
    template: tuple[str, str, str, Any]
    split: Literal["train", "validation", "test", ""] = ""

    def __post_init__(self) -> None:
        if not all(map(text_of, (str(self.user), str(self.item), self.feature, self.sentence))):
            raise ValueError("user, item, feature and sentence must not be empty")

    @property
    def feature(self) -> str:
        """What the sentence speaks of."""
        return self.template[0]

    @property
    def remark(self) -> str:
        """Opinion and feature, such as "great pool"."""
        return f"{self.template[1]} {self.feature}".strip()

    @property
    def sentence(self) -> str:
        """The explanation to be generated."""
        return self.template[2]


class Reviews(Corpus):
    """A folder of reviews; raises DataError where `reviews.json` is missing or does not fit."""

    records = "reviews"

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / REVIEWS_FILE
        spec = parsed(load_json(path), ReviewSpec, str(path))
        super().__init__(spec.name, [path, path.parent / spec.file], (VIEW,))

    @functools.cached_property
    def reviews(self) -> list[Review]:
        """In the order of the file; raises DataError where a line is none, or there is none."""
        reviews = [review for _, review in json_lines(self.files[1], Review)]
        if not reviews:
            raise DataError(f"{self.files[1]} holds no review")
        return reviews

    def split_names(self) -> Iterator[tuple[str, str]]:
        return ((str(row), review.split) for row, review in enumerate(self.reviews))

    def rows(self, record_splits: Sequence[str]) -> Iterator[ViewRow]:
        features: dict[str, Counter[str]] = defaultdict(Counter)
        remarks: dict[str, Counter[str]] = defaultdict(Counter)
        for review, split in zip(self.reviews, record_splits, strict=True):
            if split == "train":
                features[str(review.user)][review.feature] += 1
                remarks[str(review.item)][review.remark] += 1
        for index, (review, split) in enumerate(zip(self.reviews, record_splits, strict=True)):
            # A training review would otherwise say what is to be written.
            itself = int(split == "train")
            of_user = _most_common(features[str(review.user)], review.feature, itself)
            of_item = _most_common(remarks[str(review.item)], review.remark, itself)
            row = {
                "text_id": str(index),
                "text_index": index,
                "user_id": str(review.user),
                "item_indices": [],
                "seen_indices": [],
                "liked_indices": [],
                "source": [
                    of_user and f"writes of {of_user}",
                    of_item and f"others say {of_item}",
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


def _most_common(counts: Counter[str], name: str, fewer: int) -> str:
    """The names counted most, where `name` counts `fewer` times less."""
    counts = counts.copy()
    counts[name] -= fewer
    # Of equals the first that was met, so that the order of the file decides, not hashing.
    return ", ".join([name for name, count in counts.most_common() if count > 0][:_MOST])
