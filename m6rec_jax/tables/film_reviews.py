"""Snippets of film reviews as a corpus with two classes, and the plots that come with them."""

from __future__ import annotations

import bz2
import csv
import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.errors import DataError
from m6rec_jax.tables.corpora import CORPUS_FILE, CorpusSpec, Text, write_corpus
from m6rec_jax.tables.film_attributes import film_group
from m6rec_jax.tables.film_sources import REVIEW_SNIPPETS
from m6rec_jax.tables.raw_text import repaired
from m6rec_jax.tables.sources import PublicDataset

CLASSES = ("rotten", "fresh")
_FILE = "rotten_tomatoes_corpus_full.csv.bz2"
_COLUMNS = ["category", "text", "movie_name", "has_plot_and_reviews"]


@dataclasses.dataclass(frozen=True, slots=True)
class Snippet:
    """One row of the file: `category` is 'fresh', 'rotten' or 'plot'; `film` as a title."""

    category: str
    film: str
    text: str


def read_snippets(path: Path) -> list[Snippet]:
    """The rows of the file, with texts repaired; some are empty.

    Raises:
      DataError: the file is not this table.
    """
    try:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header != _COLUMNS:
                raise DataError(f"{path}: the header is {header}, not {_COLUMNS}")
            found = []
            for number, row in enumerate(rows, start=2):
                if len(row) != len(_COLUMNS) or row[0] not in (*CLASSES, "plot"):
                    raise DataError(f"{path}, record {number}: no snippet, {row}")
                film = " ".join(row[2].replace("_", " ").split())
                found.append(Snippet(row[0], film, repaired(row[1])))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    return found


def review_texts(sources: Mapping[str, Path]) -> tuple[list[Text], Counter[str]]:
    """Every snippet with its verdict as label, and how many are left out and why."""
    left_out: Counter[str] = Counter()
    texts: list[Text] = []
    seen: set[tuple[str, str]] = set()
    for number, snippet in enumerate(read_snippets(sources[REVIEW_SNIPPETS.name] / _FILE)):
        if snippet.category == "plot":
            continue
        group = film_group(snippet.film)
        if not snippet.text:
            left_out["empty"] += 1
        elif (group, snippet.text) in seen:
            left_out["repeated"] += 1
        else:
            seen.add((group, snippet.text))
            label = CLASSES.index(snippet.category)
            texts.append(Text(f"r{number}", group, snippet.film, (snippet.text,), label))
    return texts, left_out


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    texts, left_out = review_texts(sources)
    counts = Counter(CLASSES[text.label] for text in texts if text.label is not None)
    spec = CorpusSpec(
        name="film-reviews",
        id="text_id",
        group="film",
        text="text",
        about="title",
        label="verdict",
        classes=CLASSES,
        question="What does the critic say?",
        description=f"{len(texts):,} snippets of film reviews, fresh or rotten",
        licence=REVIEW_SNIPPETS.licence,
        provenance={"left_out": dict(left_out)},
    )
    write_corpus(folder, spec, texts)
    told = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    missing = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items())) or "none"
    films = len({text.group for text in texts})
    return f"film-reviews: {told} snippets of {films:,} films; left out: {missing}"


DATASET = PublicDataset(
    name="film-reviews",
    description="snippets of film reviews, fresh or rotten",
    sources=(REVIEW_SNIPPETS,),
    build=build,
    spec_file=CORPUS_FILE,
)
