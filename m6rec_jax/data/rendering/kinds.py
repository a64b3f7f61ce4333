"""What a folder of data holds, by the file that describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from m6rec_jax.data.dataset.schema import SPEC_FILE
from m6rec_jax.data.rendering.corpora import Corpus
from m6rec_jax.data.rendering.dialogues import DIALOGUES_FILE, Dialogues
from m6rec_jax.data.rendering.reviews import REVIEWS_FILE, Reviews
from m6rec_jax.data.rendering.texts import CORPUS_FILE, TextCorpus
from m6rec_jax.errors import DataError

_CORPORA: Mapping[str, Callable[[Path], Corpus]] = {
    CORPUS_FILE: TextCorpus,
    REVIEWS_FILE: Reviews,
    DIALOGUES_FILE: Dialogues,
}


def open_corpus(folder: Path) -> Corpus | None:
    """Opens a folder of texts, reviews or dialogues; None for one of users, items and events.

    Raises:
      DataError: no file in it says what it holds, or as the classes of corpora.
    """
    for name, open_folder in _CORPORA.items():
        if (folder / name).is_file():
            return open_folder(folder)
    if (folder / SPEC_FILE).is_file():
        return None
    raise DataError(
        f"{folder} has no {SPEC_FILE}, {', '.join(_CORPORA)} that says what is in it: `m6rec data "
        "fetch` makes folders of public data, docs/own_data.md shows how to make others"
    )
