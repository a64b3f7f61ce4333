"""`m6rec data prepare` for a corpus: texts become TFDS data sets of documents and labelled texts.

A long text is cut into passages of whole sentences, a dialogue into its turns. Each of them is a
document: what the text is about and the parts before it are the source, the part itself the target.
Texts with a class are rows of 'labelled_texts', each whole.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.tables import splits, views
from m6rec_jax.tables.corpora import CORPUS_FILE, Corpus, Text
from m6rec_jax.tables.grouping import part_name
from m6rec_jax.tables.prepared import Prepared
from m6rec_jax.tables.splits import EXCLUDED, Split
from m6rec_jax.tables.text_views import TextViews, ViewRow, files_fingerprint
from m6rec_jax.text.passages import passages

log = logging.getLogger(__name__)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CorpusOptions:
    """How texts are cut into documents. Set in gin: `CorpusOptions.passage_words = 60`.

    Attributes:
      passage_words: words of a passage or turn, at most; longer ones are cut.
      context_parts: how many passages or turns before a document stand in its source, at most.
      rows_per_file: rows of one rendered file.
    """

    passage_words: int = 40
    context_parts: int = 3
    rows_per_file: int = 100_000

    def __post_init__(self) -> None:
        if self.passage_words < 1 or self.context_parts < 0 or self.rows_per_file < 1:
            raise ConfigError(
                "CorpusOptions need passage_words and rows_per_file of at least 1 and no negative "
                f"context_parts, not {self}"
            )


@gin.configurable
def prepare_corpus(
    corpus_dir: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    split: str = "by_group",
    options: CorpusOptions | None = None,
    progress: bool = True,
) -> Prepared:
    """Renders a split of a corpus.

    Args:
      corpus_dir: the corpus folder.
      out: the TFDS data_dir to write to; may hold other data sets and splits.
      split: 'by_group', with options where wanted (`by_group:seed=1`), or 'few_shot:n=64,seed=0',
        which keeps n training rows with a label.
      options: None for gin's `CorpusOptions` or the defaults.
      progress: whether to show bars.

    Returns:
      what was written: the view 'documents' and, where texts have labels, 'labelled_texts'.

    Raises:
      DataError: something is wrong with the folder, or a part is empty.
      ConfigError: an option has an impossible value.
    """
    options = options or CorpusOptions()
    out = Path(out)
    corpus = Corpus.open(corpus_dir)
    parsed = Split.parse(split)
    if parsed.kind not in ("by_group", "few_shot"):
        raise DataError(
            f"split {parsed.name!r} needs users and times; {corpus.directory} holds texts: use "
            "'by_group' or 'few_shot'"
        )
    wanted = views.TEXT_VIEWS if corpus.spec.label else views.TEXT_VIEWS[:1]
    settings = [parsed.kind, dict(parsed.options), dataclasses.asdict(options)]
    files = (corpus.directory / CORPUS_FILE, *corpus.files)
    made = TextViews(out, corpus.spec.name, parsed.name, wanted, files_fingerprint(files, settings))
    if made.is_done():
        log.info("%s is prepared already", made.folder)
        return made.open()
    codes = _assign(corpus, parsed)
    manifest = {
        "corpus_spec": corpus.spec.to_dict(),
        "split": {"name": parsed.name, "kind": parsed.kind, "options": dict(parsed.options)},
        "options": dataclasses.asdict(options),
        "counts": {"texts": splits.part_counts(codes)},
    }
    return made.write(_rows(corpus, codes, options), manifest, options.rows_per_file, progress)


def _rows(corpus: Corpus, codes: np.ndarray, options: CorpusOptions) -> Iterator[ViewRow]:
    for index, (text, code) in enumerate(zip(corpus.texts(), codes.tolist(), strict=True)):
        if code == EXCLUDED:
            continue
        part = part_name(code)
        for document in documents(text, options):
            yield ViewRow("documents", part, document)
        if text.label is not None:
            row = labelled_text(index, text, corpus.spec.question)
            yield ViewRow("labelled_texts", part, row)


def documents(text: Text, options: CorpusOptions) -> Iterator[dict[str, Any]]:
    """The documents of a text: rows of the view 'documents'."""
    parts = [piece for part in text.parts for piece in passages(part, options.passage_words)]
    for place, target in enumerate(parts):
        before = parts[max(0, place - options.context_parts) : place]
        yield {"kind": "text", "source": [text.about, *before], "target": target}


def labelled_text(index: int, text: Text, question: str) -> dict[str, Any]:
    """A row of the view 'labelled_texts': what the text is about is not told, only what it says.

    Args:
      index: place of the text in the table.
      text: with a label.
      question: about it.
    """
    return {
        "text_id": text.id,
        "text_index": index,
        "group": text.group,
        "source": list(text.parts),
        "question": question,
        "label": text.label,
    }


def _assign(corpus: Corpus, split: Split) -> np.ndarray:
    """Part code of every text `[texts]`."""
    found = [(text.group, text.label is not None) for text in corpus.texts()]
    groups = [group for group, _ in found]
    if split.kind == "by_group":
        codes = splits.by_group(groups, **split.arguments())
    else:
        base = Split.parse(str(split.options.get("of", "by_group")))
        if base.kind != "by_group":
            raise DataError(
                f"split {split.name!r} of texts starts from 'by_group', not from {base.name!r}"
            )
        codes = splits.by_group(groups, **base.arguments())
        # A sample of texts without a class would be none.
        labelled = np.asarray([has_label for _, has_label in found])
        codes[(codes == splits.TRAIN) & ~labelled] = EXCLUDED
        # Texts have no history: what is not sampled is not seen.
        codes = splits.few_shot(codes, **{**split.arguments(), "history": "sampled"})
    splits.check_parts(codes, split.name, "texts")
    return codes
