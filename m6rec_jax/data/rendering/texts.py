"""Corpora of texts, for language modelling and classification.

A folder with one table, `texts`, and a `corpus.json`:

    {
      "name": "film-reviews",
      "texts": {"id": "text_id", "group": "film", "text": "text", "about": "title",
                "label": "verdict"},
      "classes": ["rotten", "fresh"],
      "question": "What does the critic say?"
    }

`text` names a column of strings; `turns` in its place one of lists of strings, such as the turns of
a dialogue. `group` says which texts must stay in one split (all about one film), `about` what
stands before a text (a title). Optional: `about`; `label` with `classes` and `question` (texts
without a label have no class and are used for language alone); `file` in `texts` (as in
`dataset.json`); `description`, `licence`, `provenance`.

A long text is cut into passages of whole sentences, a dialogue into its turns. Each is a document:
what the text is about and what stands before are the source, the passage itself the target. Texts
with a class are rows of 'labelled_texts', each whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.dataset import columns, files
from m6rec_jax.data.dataset.reading import read_rows
from m6rec_jax.data.dataset.schema import declared, load_json, parsed
from m6rec_jax.data.rendering.corpora import Corpus, Record, ViewRow
from m6rec_jax.data.store.views import TEXT_VIEWS
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.passages import passages

CORPUS_FILE = "corpus.json"
# Longer passages and turns are cut.
_PASSAGE_WORDS = 40
# Passages or turns before a document that stand in its source, at most.
_CONTEXT_PASSAGES = 3


@dataclasses.dataclass(frozen=True, slots=True)
class TextColumns:
    """The object `texts` of `corpus.json`: columns of the table, and its file."""

    id: str
    group: str
    text: str | None = None
    turns: str | None = None
    about: str | None = None
    label: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.turns is None):
            raise ValueError("'text' or 'turns' must name a column, one of the two")

    @property
    def kinds(self) -> dict[str, str]:
        """The columns that the texts file must have, and what is in each."""
        of_strings = dict.fromkeys((self.group, self.text, self.about, self.label), "string")
        kinds = {self.id: columns.ID, self.turns: "list<string>", **of_strings}
        return {name: kind for name, kind in kinds.items() if name is not None}


@dataclasses.dataclass(frozen=True, slots=True)
class CorpusSpec:
    """The object of `corpus.json`; `classes` are in the order of their numbers."""

    name: str
    texts: TextColumns
    classes: tuple[str, ...] = ()
    question: str = ""
    description: str = ""
    licence: str = ""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.texts.label is None:
            if self.classes:
                raise ValueError("'classes' are given, but 'texts.label' names no column")
        elif len({*self.classes}) < max(2, len(self.classes)):
            raise ValueError("'classes' must be two different names or more")
        elif not self.question.strip():
            raise ValueError("'question' is missing: what is asked of a text with a label")

    @classmethod
    def load(cls, directory: str | Path) -> CorpusSpec:
        """Reads `directory/corpus.json`; raises DataError where it does not fit."""
        path = Path(directory) / CORPUS_FILE
        return parsed(load_json(path), cls, str(path))


class Text(NamedTuple):
    """One text, or one dialogue."""

    id: str  # unique in the corpus
    group: str  # texts of one group stay in one split
    about: str  # what it is about, "" where nothing is said
    turns: tuple[str, ...]  # of a dialogue, or the text as the only one; never empty
    label: int | None = None  # number of its class, None where it has none


class TextCorpus(Corpus):
    """A folder of texts.

    Raises:
      DataError: no or a wrong `corpus.json`, a missing file or column, a damaged file.
    """

    kind = "texts"

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        self.spec = CorpusSpec.load(directory)
        self._tables = files.table_files(directory, "texts", self.spec.texts.file)
        for path in self._tables:
            files.require_columns(path, [*self.spec.texts.kinds])
        views = TEXT_VIEWS if self.spec.texts.label else TEXT_VIEWS[:1]
        self.manifest = {"corpus_spec": declared(self.spec)}
        super().__init__(self.spec.name, [directory / CORPUS_FILE, *self._tables], views)

    @property
    def records(self) -> Iterator[Record]:
        """Streams the texts in the order of the files; raises DataError, with file and row, for a
        null or repeated id, a null group, a text without words, a label that is no class, or no
        texts at all.
        """
        spec, classes = self.spec.texts, self.spec.classes
        ids: set[str] = set()
        for path, row, values in read_rows(self._tables, spec.kinds):
            value_of: dict[str | None, Any] = dict(zip(spec.kinds, values, strict=True))
            id_, group, label = value_of[spec.id], value_of[spec.group], value_of.get(spec.label)
            turns = value_of[spec.turns] or () if spec.turns else (value_of[spec.text],)
            turns = tuple(filter(text_of, turns))
            problem = ""
            if group is None:
                problem = f"column {spec.group!r}: the value is missing"
            elif id_ in ids:
                problem = f"the {spec.id} {id_!r} occurs twice"
            elif not turns:
                problem = f"column {spec.text or spec.turns!r}: the text has no words"
            elif label not in (None, *classes):
                near = did_you_mean(str(label), classes)
                problem = f"column {spec.label!r}: {label!r} is none of {', '.join(classes)}{near}"
            if problem:
                raise DataError(f"{path}, row {row}: {problem}")
            ids.add(id_)
            number = None if label is None else classes.index(label)
            yield Record(Text(id_, group, value_of.get(spec.about) or "", turns, number), group)

    def rows(self, record_splits: Sequence[str]) -> Iterator[ViewRow]:
        pairs = zip(self.records, record_splits, strict=True)
        for index, ((text, _, _), split) in enumerate(pairs):
            for document in documents(text):
                yield ViewRow("documents", split, document)
            if text.label is not None:
                # What the text is about is left out: the class is to be read off the text alone.
                row = {"text_id": text.id, "text_index": index, "group": text.group}
                row |= {"source": text.turns, "question": self.spec.question, "label": text.label}
                yield ViewRow("labelled_texts", split, row)


def documents(text: Text) -> Iterator[dict[str, Any]]:
    """The documents of a text: rows of the view 'documents'."""
    cut = [passage for turn in text.turns for passage in passages(turn, _PASSAGE_WORDS)]
    for index, target in enumerate(cut):
        before = cut[max(0, index - _CONTEXT_PASSAGES) : index]
        yield {"kind": "text", "source": [text.about, *before], "target": target}


def write_corpus(folder: Path, spec: CorpusSpec, texts: Sequence[Text]) -> None:
    """Writes `corpus.json` and `texts.parquet`, which `spec` must not call otherwise."""
    names, classes = spec.texts, (*spec.classes, None)
    rows = [
        {
            names.id: text.id,
            names.group: text.group,
            names.text: text.turns[0],
            names.turns: text.turns,
            names.about: text.about or None,
            names.label: classes[-1 if text.label is None else text.label],
        }
        for text in texts
    ]
    table = pa.Table.from_pylist(rows, columns.arrow_schema(names.kinds))
    pq.write_table(table, folder / "texts.parquet", compression="zstd")
    content = json.dumps(declared(spec), indent=2, ensure_ascii=False)
    (folder / CORPUS_FILE).write_text(content + "\n", "utf-8")
