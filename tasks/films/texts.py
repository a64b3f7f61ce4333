"""Texts about films that several corpora share: review snippets, critics' consensus, genres.

Groups of a corpus are films (`film_group`), so that a film is in one part of a split in all of
them.
"""

from __future__ import annotations

import bz2
import csv
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.data.corpora import repaired
from m6rec_jax.data.texts import CorpusSpec, Text, write_corpus
from m6rec_jax.text.format_strings import Template
from tasks.films.table import film_group

VERDICTS = ("rotten", "fresh")
TITLE = Template.parse("{title} ({year})", "title")
_NO_CONSENSUS = "No consensus yet."
# As the site has it: a film is fresh where at least so many of a hundred critics liked it.
_FRESH_METER = 60

# Category of the plots -> genre.
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


class Snippet(NamedTuple):
    """A row of the review snippets: `category` is 'fresh', 'rotten' or 'plot'."""

    category: str
    film: str
    text: str


def read_snippets(folder: Path) -> Iterator[Snippet]:
    """The rows of the file, with texts repaired; some are empty."""
    path = folder / "rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            film = " ".join(row["movie_name"].replace("_", " ").split())
            yield Snippet(row["category"], film, repaired(row["text"]))


def review_texts(raw: Mapping[str, Path]) -> list[Text]:
    """Every snippet of a review with its verdict as label; some are empty or there twice."""
    return [
        film_text(f"r{number}", film, film, text, VERDICTS.index(category))
        for number, (category, film, text) in enumerate(read_snippets(raw["review-snippets"]))
        if category != "plot"
    ]


def consensus_texts(raw: Mapping[str, Path]) -> list[Text]:
    """What critics agree on about each film, with their verdict as label; some are empty."""
    query = (
        "SELECT o.Title, o.Year, t.Consensus, t.Meter"
        " FROM tomatoes t JOIN omdb o ON o.ID = t.ID"
        " WHERE t.Consensus <> '' AND o.Title <> '' AND o.Year IS NOT NULL ORDER BY o.ID"
    )
    path = raw["film-consensus-table"] / "movies.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query).fetchall()
    return [
        film_text(
            f"c{number}",
            repaired(title),
            TITLE.render({"title": repaired(title), "year": year}),
            "" if sentence == _NO_CONSENSUS else repaired(sentence),
            None if meter is None else int(meter >= _FRESH_METER),
        )
        for number, (title, year, sentence, meter) in enumerate(rows)
    ]


def film_text(identifier: str, title: str, about: str, text: str, label: int | None = None) -> Text:
    """A text about the film of this title, in any spelling."""
    return Text(identifier, film_group(title), about, (text,), label)


def rarest_genres(
    categories: Sequence[Sequence[str]], genre_of: Mapping[str, str] = GENRES
) -> list[int | None]:
    """The class of each film: the rarest of its genres among all films, None without a genre.

    Args:
      categories: of each film, as in the file. Genres equally rare are taken in the alphabet's
        order.
      genre_of: genre of a category.
    """
    genres = [
        sorted({genre_of[name] for name in names if name in genre_of}) for names in categories
    ]
    counts = Counter(genre for names in genres for genre in names)
    return [
        GENRE_CLASSES.index(min(names, key=counts.__getitem__)) if names else None
        for names in genres
    ]


def write_texts(folder: Path, texts: Sequence[Text]) -> dict[str, int]:
    """Writes a corpus without its empty and repeated texts, which are counted."""
    kept: dict[tuple[str, str], Text] = {}
    for text in texts:
        if text.turns[0]:
            kept.setdefault((text.group, text.turns[0]), text)
    write_corpus(folder, CorpusSpec.load(folder), list(kept.values()))
    empty = sum(not text.turns[0] for text in texts)
    repeated = len(texts) - empty - len(kept)
    return {"empty texts left out": empty, "repeated texts left out": repeated}
