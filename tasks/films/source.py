"""Six corpora of texts about films; the one that is built is named by its corpus.json.

Groups of a corpus are films (`film_group`), so that a film is in one split in all of them.
"""

from __future__ import annotations

import bz2
import csv
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from m6rec_jax.data.rendering.corpora import repaired
from m6rec_jax.data.rendering.texts import CorpusSpec, Text, write_corpus
from m6rec_jax.text.format_strings import Template
from tasks.films.table import FILM_COLUMNS, FilmTable, film_group

VERDICTS = ("rotten", "fresh")
# As the site has it: a film is fresh where at least so many of a hundred critics liked it.
_FRESH_METER = 60
_NO_CONSENSUS = "No consensus yet."
_TITLE = Template.parse("{title} ({year})", "title")
_DESCRIPTION = Template.parse(
    "[A {genre} film.][ Directed by {director}.][ Written by {writer}.][ With {cast}.]"
    "[ Made in {country}.][ In {language}.][ It takes {runtime} minutes.][ Rated {certificate}.]"
    "[ Awards: {awards}.]",
    "description",
)
_OVERVIEW = Template.parse("{overview}[ It is about {keywords}.]", "text")
_WIKI_MARKS = re.compile(r"\[\[|\]\]|\{\{|\}\}")
_WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")
# Sums of words' ratings nearer to 0 have no tone.
_LEAST_TONE = 0.5

# Category of the plots -> genre.
GENRES: Mapping[str, str] = {
    **{
        name: name.lower()
        for name in (
            *("Action", "Adventure", "Animation", "Biography", "Comedy", "Documentary", "Drama"),
            *("Fantasy", "Horror", "Musical", "Mystery", "Science Fiction", "Sports", "Thriller"),
            "Western",
        )
    },
    "Biographical film": "biography",
    "Comedy film": "comedy",
    "Crime Fiction": "crime",
    "Family Film": "family",
    "Martial Arts Film": "martial arts",
    "Romance Film": "romance",
    "War film": "war",
}
GENRE_CLASSES = tuple(sorted(set(GENRES.values())))
# Genre of the overviews -> of `GENRE_CLASSES`; the others are none of those.
_OVERVIEW_GENRES = {**{genre.title(): genre for genre in GENRE_CLASSES}, "Music": "musical"}

Raw = Mapping[str, Path]


def build(raw: Raw, folder: Path) -> dict[str, int]:
    """Writes a corpus without its empty and repeated texts, which are counted."""
    spec = CorpusSpec.load(folder)
    texts = list(_CORPORA[spec.name](raw))
    kept: dict[tuple[str, str], Text] = {}
    for text in texts:
        if text.turns[0]:
            kept.setdefault((text.group, text.turns[0]), text)
    write_corpus(folder, spec, list(kept.values()))
    empty = sum(not text.turns[0] for text in texts)
    repeated = len(texts) - empty - len(kept)
    return {"empty texts left out": empty, "repeated texts left out": repeated}


def _text(identifier: str, title: str, about: str, text: str, label: int | None = None) -> Text:
    """A text about the film of this title, in any spelling."""
    return Text(identifier, film_group(title), about, (text,), label)


def _snippets(raw: Raw, *categories: str) -> Iterator[Text]:
    """Review snippets of these categories ('rotten', 'fresh', 'plot'); verdicts are labels."""
    path = raw["review-snippets"] / "rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if (category := row["category"]) in categories:
                film = " ".join(row["movie_name"].replace("_", " ").split())
                text = repaired(row["text"])
                if category == "plot":
                    yield _text(f"s{number}", film, film, text)
                else:
                    yield _text(f"r{number}", film, film, text, VERDICTS.index(category))


def _reviews(raw: Raw) -> Iterator[Text]:
    """Every snippet of a review, with its verdict."""
    return _snippets(raw, *VERDICTS)


def _consensus(raw: Raw) -> Iterator[Text]:
    """What critics agree on about each film, with their verdict."""
    query = (
        "SELECT o.Title, o.Year, t.Consensus, t.Meter"
        " FROM tomatoes t JOIN omdb o ON o.ID = t.ID"
        " WHERE t.Consensus <> '' AND o.Title <> '' AND o.Year IS NOT NULL ORDER BY o.ID"
    )
    path = raw["film-consensus-table"] / "movies.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        for number, (title, year, sentence, meter) in enumerate(connection.execute(query)):
            title = repaired(title)
            about = _TITLE.render({"title": title, "year": year})
            text = "" if sentence == _NO_CONSENSUS else repaired(sentence)
            label = None if meter is None else int(meter >= _FRESH_METER)
            yield _text(f"c{number}", title, about, text, label)


def _attributes(raw: Raw) -> Iterator[Text]:
    """Director, cast, country, awards and so on of each film, in sentences."""
    for number, film in enumerate(FilmTable.load(raw["film-table"] / "movies.db").films):
        values = {column: getattr(film, column) for column in FILM_COLUMNS} | {
            "genre": ", ".join(name.lower() for name in film.genre),
            "awards": film.awards and film.awards.rstrip("."),
        }
        about = repaired(_TITLE.render({"title": film.title, "year": film.year}))
        yield _text(f"f{number}", film.title, about, repaired(_DESCRIPTION.render(values)))


def _overviews(raw: Raw) -> Iterator[Text]:
    """What each film is about, in a few sentences, and keywords."""

    def names(text: str) -> list[str]:
        return [one["name"] for one in json.loads(text)]

    rows = _csv_rows(raw["film-overviews-table"])
    genres = rarest_genres([names(row["genres"]) for row in rows], _OVERVIEW_GENRES)
    for number, (row, genre) in enumerate(zip(rows, genres, strict=True)):
        title, overview = repaired(row["title"]), repaired(row["overview"])
        keywords = ", ".join(names(row["keywords"]))
        text = overview and _OVERVIEW.render({"overview": overview, "keywords": keywords})
        yield _text(f"o{number}", title, title, text, genre)


def _plots(raw: Raw) -> Iterator[Text]:
    """Plots with their genre, and those that come with the review snippets, without one."""
    rows = _csv_rows(raw["plots"])
    genres = rarest_genres([re.findall(r'"([^"]+)"', row["Category"]) for row in rows], GENRES)
    for number, (row, genre) in enumerate(zip(rows, genres, strict=True)):
        title = repaired(row["Title"])
        plot = " ".join(_WIKI_MARKS.sub(" ", repaired(row["Plot"])).split())
        yield _text(f"p{number}", title, title, plot, genre)
    yield from _snippets(raw, "plot")


def _tones(raw: Raw) -> Iterator[Text]:
    """Critics' sentences whose words sound good or bad, whatever the critic thought of the film.

    The sum of the words' ratings in VADER's lexicon decides; the last entry of a word counts, and
    signs and emoticons are no words. A sentence without a tone is left empty.
    """
    lexicon = (raw["tone-lexicon"] / "vader_lexicon.txt").read_text("utf-8")
    entries = (line.split("\t")[:2] for line in lexicon.splitlines())
    ratings = {entry: float(rating) for entry, rating in entries if _WORD.fullmatch(entry)}
    for sentence in (*_reviews(raw), *_consensus(raw)):
        words = _WORD.findall(sentence.turns[0].lower())
        rating = sum(ratings.get(word, 0.0) for word in words)
        turns = sentence.turns if abs(rating) >= _LEAST_TONE else ("",)
        yield sentence._replace(about="", label=int(rating > 0), turns=turns)


_CORPORA: Mapping[str, Callable[[Raw], Iterator[Text]]] = {
    "film-attributes": _attributes,
    "film-consensus": _consensus,
    "film-overviews": _overviews,
    "film-plots": _plots,
    "film-reviews": _reviews,
    "film-tones": _tones,
}


def _csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rarest_genres(
    categories: Sequence[Sequence[str]], genre_of: Mapping[str, str]
) -> list[int | None]:
    """The class of each film: the rarest of its genres, which says most; None without a genre.

    A western that is a drama, too, is a western. Genres equally rare are taken in the alphabet's
    order.

    Args:
      categories: of each film, as in the file.
      genre_of: genre of a category; others are no genres.
    """
    genres = [
        sorted({genre_of[name] for name in names if name in genre_of}) for names in categories
    ]
    counts = Counter(genre for names in genres for genre in names)
    return [
        GENRE_CLASSES.index(min(names, key=counts.__getitem__)) if names else None
        for names in genres
    ]
