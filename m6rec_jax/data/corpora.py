"""Corpora: folders of texts for language modelling and classification.

A corpus is a folder with one table, `texts`, and a `corpus.json`:

    {
      "name": "film-reviews",
      "texts": {"id": "text_id", "group": "film", "text": "text", "about": "title",
                "label": "verdict"},
      "classes": ["rotten", "fresh"],
      "question": "What does the critic say?"
    }

`text` names a column of strings; `turns` in its place one of lists of strings, such as the turns of
a dialogue. `group` says which texts must stay in one part of a split (all about one film),
`about` what stands before a text (a title). Optional: `about`; `label` with `classes` and
`question` (texts without a label have no class and are used for language alone); `file` in `texts`
(as in `dataset.json`); `description`, `licence`, `provenance`.

`prepare_corpus` cuts a long text into passages of whole sentences, a dialogue into its turns. Each
is a document: what the text is about and the parts before it are the source, the part itself the
target. Texts with a class are rows of 'labelled_texts', each whole.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data import columns, files, splits
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.reading import read_rows
from m6rec_jax.data.schema import declared, load_json, parsed
from m6rec_jax.data.splits import PARTS, Split
from m6rec_jax.data.text_views import ViewRow, prepare_texts
from m6rec_jax.data.views import TEXT_VIEWS
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.passages import passages

CORPUS_FILE = "corpus.json"
# Longer passages and turns are cut.
_PASSAGE_WORDS = 40
# Passages or turns before a document that stand in its source, at most.
_CONTEXT_PARTS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class TextColumns:
    """The object `texts` of `corpus.json`: columns of the table.

    Attributes:
      id, group, about, label: of strings; None: there is none.
      text, turns: of strings, or of lists of them; one of the two.
      file: file name or pattern inside the folder; None: `texts.parquet` or `texts.csv`.
    """

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
        optional = {
            self.text: "string",
            self.turns: "list<string>",
            self.about: "string",
            self.label: "string",
        }
        kinds = {self.id: columns.ID, self.group: "string"}
        return kinds | {name: kind for name, kind in optional.items() if name is not None}


@dataclasses.dataclass(frozen=True, slots=True)
class CorpusSpec:
    """The object of `corpus.json`. See the module's docstring.

    Attributes:
      name: of the corpus.
      texts: its columns.
      classes: names of the classes, in the order of their numbers; empty without a label.
      question: what is asked about a text whose class is wanted.
    """

    name: str
    texts: TextColumns
    classes: tuple[str, ...] = ()
    question: str = ""
    description: str = ""
    licence: str = ""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.texts.label is None and self.classes:
            raise ValueError("'classes' are given, but 'texts.label' names no column")
        if self.texts.label is not None:
            if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
                raise ValueError(
                    f"'classes' must be two different names or more, not {list(self.classes)!r}"
                )
            if not self.question.strip():
                raise ValueError("'question' is missing: what is asked of a text with a label")

    @classmethod
    def load(cls, directory: str | Path) -> CorpusSpec:
        """Reads `directory/corpus.json`.

        Raises:
          DataError: an unknown or missing key, a wrong type, or classes that do not fit.
        """
        path = Path(directory) / CORPUS_FILE
        return parsed(load_json(path), cls, str(path))


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
      id: unique in the corpus.
      group: texts of one group stay in one part of a split.
      about: what it is about, "" where nothing is said.
      parts: its turns, or the text as the only one; never empty.
      label: number of its class, None where it has none.
    """

    id: str
    group: str
    about: str
    parts: tuple[str, ...]
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus folder. Make it with `Corpus.open`.

    Attributes:
      directory: the folder.
      spec: its parsed `corpus.json`.
      files: of the texts.
    """

    directory: Path
    spec: CorpusSpec
    files: tuple[Path, ...]

    @classmethod
    def open(cls, directory: str | Path) -> Corpus:
        """Opens a folder and checks that its files exist and have the declared columns.

        Raises:
          DataError: no or a wrong `corpus.json`, a missing file or column, a damaged file.
        """
        directory = Path(directory)
        spec = CorpusSpec.load(directory)
        found = files.table_files(directory, "texts", spec.texts.file)
        for path in found:
            files.require_columns(path, [*spec.texts.kinds])
        return cls(directory, spec, tuple(found))

    def texts(self) -> Iterator[Text]:
        """Streams the texts in the order of the files.

        Raises:
          DataError: a null or repeated id, a null group, a text without words, a label that is
            none of the classes, or no texts at all; the message names file and row.
        """
        spec = self.spec.texts
        numbers = {name: number for number, name in enumerate(self.spec.classes)}
        seen: set[str] = set()
        for path, row, values in read_rows(self.files, spec.kinds):
            found: dict[str | None, Any] = dict(zip(spec.kinds, values, strict=True))
            identifier, group, label = found[spec.id], found[spec.group], found.get(spec.label)
            where = f"{path}, row {row}"
            if group is None:
                raise DataError(f"{where}, column {spec.group!r}: the value is missing")
            if identifier in seen:
                raise DataError(f"{where}: the {spec.id} {identifier!r} occurs twice")
            seen.add(identifier)
            given = found[spec.turns] if spec.turns else [found[spec.text]]
            parts = tuple(part for part in given or () if text_of(part))
            if not parts:
                raise DataError(
                    f"{where}, column {spec.text or spec.turns!r}: the text has no words"
                )
            if label is not None and label not in numbers:
                raise DataError(
                    f"{where}, column {spec.label!r}: {label!r} is none of the classes"
                    f"{did_you_mean(label, numbers)} ({', '.join(numbers)})"
                )
            number = None if label is None else numbers[label]
            yield Text(identifier, group, found.get(spec.about) or "", parts, number)


def corpus_summary(folder: str | Path) -> str:
    """Reads a whole corpus and says what is in it; raises DataError at the first bad row."""
    corpus = Corpus.open(folder)
    texts = groups = 0
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    for text in corpus.texts():
        texts += 1
        groups += text.group not in seen
        seen.add(text.group)
        if text.label is not None:
            counts[corpus.spec.classes[text.label]] += 1
    labels = ", ".join(f"{counts[name]:,} {name}" for name in corpus.spec.classes)
    return f"{corpus.spec.name}: {texts:,} texts of {groups:,} groups{labels and f'; {labels}'}"


def write_corpus(folder: Path, spec: CorpusSpec, texts: Sequence[Text]) -> None:
    """Writes a corpus folder: `corpus.json` and `texts.parquet`.

    Args:
      folder: exists.
      spec: names the columns; its `file` must be `texts.parquet` or None.
      texts: in the order of the table.
    """
    names = spec.texts
    values: dict[str | None, list[Any]] = {
        names.id: [text.id for text in texts],
        names.group: [text.group for text in texts],
        names.text: [text.parts[0] for text in texts],
        names.turns: [list(text.parts) for text in texts],
        names.about: [text.about or None for text in texts],
        names.label: [None if text.label is None else spec.classes[text.label] for text in texts],
    }
    arrays = {
        name: pa.array(values[name], columns.ARROW_TYPES[kind])
        for name, kind in names.kinds.items()
    }
    pq.write_table(pa.table(arrays), folder / "texts.parquet", compression="zstd")
    content = json.dumps(declared(spec), indent=2, ensure_ascii=False)
    (folder / CORPUS_FILE).write_text(content + "\n", "utf-8")


@gin.configurable
def prepare_corpus(
    corpus_dir: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    split: str = "by_group",
    progress: bool = True,
) -> Prepared:
    """Renders a split of a corpus.

    Args:
      corpus_dir: the corpus folder.
      out: the TFDS data_dir to write to; may hold other data sets and splits.
      split: 'by_group', with options where wanted (`by_group:seed=1`).
      progress: whether to show bars.

    Returns:
      what was written: the view 'documents' and, where texts have labels, 'labelled_texts'.

    Raises:
      DataError: something is wrong with the folder, or a part is empty.
    """
    corpus = Corpus.open(corpus_dir)
    parsed = Split.parse(split)
    if parsed.kind != "by_group":
        raise DataError(
            f"split {parsed.name!r} needs users and times; {corpus.directory} holds texts: use "
            "'by_group'"
        )

    def render(_: Path) -> tuple[Iterator[ViewRow], dict[str, Any]]:
        codes = splits.by_name([text.group for text in corpus.texts()], **parsed.arguments())
        splits.check_parts(codes, parsed.name, "texts")
        counts = {"texts": splits.part_counts(codes)}
        manifest = {"corpus_spec": declared(corpus.spec), "counts": counts}
        return _rows(corpus, codes), manifest

    wanted = TEXT_VIEWS if corpus.spec.texts.label else TEXT_VIEWS[:1]
    files = (corpus.directory / CORPUS_FILE, *corpus.files)
    return prepare_texts(out, corpus.spec.name, parsed, wanted, files, {}, render, progress)


def _rows(corpus: Corpus, codes: np.ndarray) -> Iterator[ViewRow]:
    for index, (text, code) in enumerate(zip(corpus.texts(), codes.tolist(), strict=True)):
        for document in documents(text):
            yield ViewRow("documents", PARTS[code], document)
        if text.label is not None:
            # What the text is about is left out: the class is to be read off the text alone.
            row = {
                "text_id": text.id,
                "text_index": index,
                "group": text.group,
                "source": list(text.parts),
                "question": corpus.spec.question,
                "label": text.label,
            }
            yield ViewRow("labelled_texts", PARTS[code], row)


def documents(text: Text) -> Iterator[dict[str, Any]]:
    """The documents of a text: rows of the view 'documents'."""
    parts = [piece for part in text.parts for piece in passages(part, _PASSAGE_WORDS)]
    for index, target in enumerate(parts):
        before = parts[max(0, index - _CONTEXT_PARTS) : index]
        yield {"kind": "text", "source": [text.about, *before], "target": target}


_C1 = re.compile("[\x80-\x9f]")


def repaired(text: str) -> str:
    """A text as it was meant: HTML entities resolved, encodings put right, single spaces.

    UTF-8 that was read as Latin-1 ("CafÃ©") is read again. Control characters that Windows-1252 has
    letters and quotation marks for become those. Text that is neither stays as it is.
    """
    try:
        # Latin-1 text with an accent is hardly ever valid UTF-8 by chance.
        text = text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        text = _C1.sub(_windows, text)
    return " ".join(html.unescape(text).split())


def _windows(match: re.Match[str]) -> str:
    # Five codes of Windows-1252 mean nothing.
    return match[0].encode("latin-1").decode("cp1252", errors="ignore")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1.

    Raises:
      DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
