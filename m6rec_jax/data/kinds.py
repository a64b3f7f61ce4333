"""Kinds of data that `m6rec data` prepares, by the file that describes a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.data.corpora import CORPUS_FILE, corpus_summary, prepare_corpus
from m6rec_jax.data.dialogues import DIALOGUES_FILE, dialogue_summary, prepare_dialogues
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.reviews import REVIEWS_FILE, prepare_reviews, review_summary
from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.errors import DataError


class DataKind(NamedTuple):
    """What a folder of data may hold; without a summary `check` takes it for a data set."""

    contents: str
    prepare: Callable[..., Prepared]
    summary: Callable[[Path], str] | None


_KINDS = {
    CORPUS_FILE: DataKind("texts", prepare_corpus, corpus_summary),
    REVIEWS_FILE: DataKind("reviews", prepare_reviews, review_summary),
    DIALOGUES_FILE: DataKind("dialogues", prepare_dialogues, dialogue_summary),
    SPEC_FILE: DataKind("users, items and events", prepare, None),
}


def kind_of(folder: Path) -> DataKind:
    """The kind of data in a folder.

    Raises:
      DataError: no folder, or no file in it describes them.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; `m6rec data fetch` makes those of public data sets"
        )
    for name, kind in _KINDS.items():
        if (folder / name).is_file():
            return kind
    known = ", ".join(f"{name} ({kind.contents})" for name, kind in _KINDS.items())
    raise DataError(
        f"{folder} has no file that says what is in it: {known}. tasks/README.md and "
        "docs/prepared_data.md show them"
    )
