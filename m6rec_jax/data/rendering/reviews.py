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
from m6rec_jax.data.rendering.corpora import Corpus, Record, ViewRow, json_lines
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


class Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a sentence of a review says: a feature, an opinion of it, and whether that is good."""

    feature: str
    opinion: str
    sentence: str
    sentiment: Any


class Review(msgspec.Struct, frozen=True):
    """One review, as a line of the file has it."""

    user: str | int
    item: str | int
    template: Said
    split: Literal["train", "validation", "test", ""] = ""

    def __post_init__(self) -> None:
        said = self.template
        if not all(map(text_of, (str(self.user), str(self.item), said.feature, said.sentence))):
            raise ValueError("user, item, feature and sentence must not be empty")


class Reviews(Corpus):
    """A folder of reviews; raises DataError where `reviews.json` is missing or does not fit."""

    kind = "reviews"

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / REVIEWS_FILE
        spec = parsed(load_json(path), ReviewSpec, str(path))
        super().__init__(spec.name, [path, path.parent / spec.file], (VIEW,))

    @functools.cached_property
    def records(self) -> Sequence[Record]:
        """All reviews; raises DataError where a line is none, or there is none."""
        reviews = enumerate(json_lines(self.files[1], Review))
        records = [Record(review, str(number), review.split) for number, review in reviews]
        if not records:
            raise DataError(f"{self.files[1]} holds no review")
        return records

    def rows(self, record_splits: Sequence[str]) -> Iterator[ViewRow]:
        features: dict[str, Counter[str]] = defaultdict(Counter)
        remarks: dict[str, Counter[str]] = defaultdict(Counter)
        rows = [
            (review, f"{review.template.opinion} {review.template.feature}".strip(), split)
            for (review, _, _), split in zip(self.records, record_splits, strict=True)
        ]
        for review, remark, split in rows:
            if split == "train":
                features[str(review.user)][review.template.feature] += 1
                remarks[str(review.item)][remark] += 1
        for index, (review, remark, split) in enumerate(rows):
            user, said = str(review.user), review.template
            # A training review would otherwise say what is to be written.
            itself = int(split == "train")
            of_user = _most_common(features[user], said.feature, itself)
            of_item = _most_common(remarks[str(review.item)], remark, itself)
            source = [of_user and f"writes of {of_user}", of_item and f"others say {of_item}"]
            row = {
                "text_id": str(index),
                "text_index": index,
                "user_id": user,
                **dict.fromkeys(("item_indices", "seen_indices", "liked_indices"), ()),
                "source": source,
                "prefix": f"{said.feature}:",
                "target": said.sentence,
                "features": [said.feature],
            }
            yield ViewRow(VIEW, split, row)


def _most_common(counts: Counter[str], name: str, fewer: int) -> str:
    """The names counted most, where `name` counts `fewer` times less."""
    counts = counts.copy()
    counts[name] -= fewer
    # Of equals the first that was met, so that the order of the file decides, not hashing.
    return ", ".join([name for name, count in counts.most_common() if count > 0][:_MOST])
