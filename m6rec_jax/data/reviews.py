"""`m6rec data prepare` for reviews in PETER's format (Li et al., 2021): explanations to write.

A folder with the files and a `reviews.json`:

    {"name": "tripadvisor", "file": "reviews.jsonl", "index": "1"}

The file holds one record per review (`review_files`).

`index` is a folder of `train.index`, `validation.index` and `test.index` with the rows (from 0) of
each part, as integers with white space between them; without it every review goes to a part by a
hash of its row. Optional: `description`, `licence`.

Users and items have no text of their own, so they are described by their *training* reviews: what a
user writes of, and what others say of an item. A training review is rendered without itself. What
is to be written is the sentence about one feature, which is given as PETER+ and M6-Rec give it;
with `ReviewOptions.name_feature = False` it is not, as in PETER.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import numpy as np

from m6rec_jax.data import splits
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.review_files import Review, ReviewReport, read_reviews
from m6rec_jax.data.schema import Section, load_json
from m6rec_jax.data.splits import PARTS, Split
from m6rec_jax.data.text_views import ViewRow, prepare_texts
from m6rec_jax.errors import ConfigError, DataError

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
        """Reads `directory/reviews.json`; raises DataError where it is missing or does not fit."""
        path = Path(directory) / REVIEWS_FILE
        return Section(load_json(path), str(path), "").read(cls)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ReviewOptions:
    """How reviews are rendered. Set in gin: `ReviewOptions.name_feature = False`.

    Attributes:
      name_feature: whether a text begins with the feature that it is about.
      most: features of a user, and words about an item, at most.
    """

    name_feature: bool = True
    most: int = 5

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"ReviewOptions.most = {self.most} must be at least 1")


def review_summary(folder: str | Path) -> str:
    """Reads all reviews and says how many there are and what was left out."""
    spec = ReviewSpec.load(folder)
    reviews, report = _read(Path(folder), spec)
    counts = Counter(review.part for review in reviews)
    given = ", ".join(f"{count:,} {part or 'without a split'}" for part, count in counts.items())
    left_out = "".join(
        f"; left out: {count:,} ({reason}; {report.examples[reason]})"
        for reason, count in report.num_rejected.items()
    )
    return f"{spec.name}: {len(reviews):,} reviews ({given}){left_out}"


@gin.configurable
def prepare_reviews(
    folder: str | Path,
    out: str | Path,
    split: str = "by_group",
    options: ReviewOptions | None = None,
    progress: bool = True,
) -> Prepared:
    """Renders reviews as texts to write: the view 'explanations'.

    Args:
      folder: with `reviews.json`.
      out: the TFDS data_dir to write to.
      split: 'by_group', with options where there are no index files (`by_group:seed=1`).
      options: None for gin's `ReviewOptions` or the defaults.
      progress: whether to show bars.

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
    files = [folder / REVIEWS_FILE, folder / spec.file]
    if spec.index:
        files += [folder / spec.index / f"{part}.index" for part in PARTS]
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} does not exist ({REVIEWS_FILE} names it)")

    def render(_: Path) -> tuple[Iterator[ViewRow], dict[str, Any]]:
        reviews, report = _read(folder, spec)
        left_out = dict(report.num_rejected)
        manifest = {"review_spec": dataclasses.asdict(spec), "left_out": left_out}
        return _rows(reviews, _parts(reviews, parsed), options), manifest

    return prepare_texts(out, spec.name, parsed, (VIEW,), files, options, render, progress)


class TrainingReviews:
    """What the reviews of the training part say of users and items."""

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
          is_own: whether it is one of the training reviews; then it is left out.
          most: see `ReviewOptions`.

        Returns:
          Two segments, of the user and of the item; empty where nothing is known.
        """
        features = self._of_user.get(review.user, Counter()).copy()
        remarks = self._of_item.get(review.item, Counter()).copy()
        if is_own:
            features[review.feature] -= 1
            remarks[_remark(review)] -= 1
        return [_listed("writes of", features, most), _listed("others say", remarks, most)]


def _remark(review: Review) -> str:
    return f"{review.opinion} {review.feature}".strip()


def _listed(words: str, counts: Counter[str], most: int) -> str:
    # Of equals the first that was met, so that the order of the file decides, not hashing.
    found = [name for name, count in counts.most_common() if count > 0][:most]
    return f"{words} {', '.join(found)}" if found else ""


def _read(folder: Path, spec: ReviewSpec) -> tuple[list[Review], ReviewReport]:
    return read_reviews(folder / spec.file, folder / spec.index if spec.index else None)


def _parts(reviews: list[Review], split: Split) -> list[str]:
    codes = splits.by_group([str(review.row) for review in reviews], **split.arguments())
    drawn = zip(reviews, codes.tolist(), strict=True)
    found = [review.part or PARTS[code] for review, code in drawn]
    splits.check_parts(np.array([PARTS.index(part) for part in found]), split.name, "reviews")
    return found


def _rows(reviews: list[Review], parts: list[str], options: ReviewOptions) -> Iterator[ViewRow]:
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
            "source": training.source(review, part == "train", options.most),
            "prefix": f"{review.feature}:" if options.name_feature else "",
            "target": review.sentence,
            "features": [review.feature],
        }
        yield ViewRow(VIEW, part, row)
