"""What tables know of films, told as text: their attributes, and what critics agree on.

What critics agree on makes two corpora of the same sentences: one asks for their verdict, the other
for the film's genre, in the words of `film_plots.GENRES`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from m6rec_jax.errors import DataError
from m6rec_jax.tables import film_plots
from m6rec_jax.tables.corpora import CORPUS_FILE, CorpusSpec, Text, write_corpus
from m6rec_jax.tables.film_attributes import FilmTable, film_group
from m6rec_jax.tables.film_reviews import CLASSES as VERDICTS
from m6rec_jax.tables.film_sources import CONSENSUS_TABLE, FILM_TABLE
from m6rec_jax.tables.raw_text import repaired
from m6rec_jax.tables.sources import PublicDataset
from m6rec_jax.text.format_strings import Template

_TITLE = Template.parse("{title} ({year})", "title")
_DESCRIPTION = Template.parse(
    "[A {genre} film.][ Directed by {director}.][ Written by {writer}.][ With {cast}.]"
    "[ Made in {country}.][ In {language}.][ It takes {runtime} minutes.][ Rated {certificate}.]"
    "[ Awards: {awards}.]",
    "description",
)
_NO_CONSENSUS = "No consensus yet."
# As the site has it: a film is fresh where at least so many of a hundred critics liked it.
_FRESH_METER = 60
# Genre of the table -> of `film_plots.GENRES`; the others are none of those.
_GENRES: Mapping[str, str] = {
    **{genre.capitalize(): genre for genre in film_plots.CLASSES},
    "Sci-Fi": "science fiction",
    "Sport": "sports",
}


def build_attributes(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus of attributes; returns a line about it and what was left out."""
    films = FilmTable.load(sources[FILM_TABLE.name] / "movies.db").films
    texts = []
    for number, film in enumerate(films):
        values = {
            "genre": ", ".join(name.lower() for name in film.genre),
            "director": film.director,
            "writer": film.writer,
            "cast": film.cast,
            "country": film.country,
            "language": film.language,
            "runtime": film.runtime,
            "certificate": film.certificate,
            "awards": film.awards and film.awards.rstrip("."),
        }
        description = repaired(_DESCRIPTION.render(values))
        title = repaired(_TITLE.render({"title": film.title, "year": film.year}))
        if description:
            texts.append(Text(f"f{number}", film_group(film.title), title, (description,)))
    spec = CorpusSpec(
        name="film-attributes",
        id="text_id",
        group="film",
        text="text",
        about="title",
        description=f"what is known of {len(texts):,} films, as text",
        licence=FILM_TABLE.licence,
        provenance={"left_out": {"nothing known": len(films) - len(texts)}},
    )
    write_corpus(folder, spec, texts)
    missing = len(films) - len(texts)
    return f"film-attributes: {len(texts):,} films; left out: {missing} of which nothing is known"


class Consensus(NamedTuple):
    """What critics agree on about a film.

    Attributes:
      number: place among the rows.
      title, year: of the film.
      sentence: the text.
      meter: how many of a hundred critics liked it, None where that is not told.
      genres: as the table names them.
    """

    number: int
    title: str
    year: int
    sentence: str
    meter: int | None
    genres: tuple[str, ...]


def read_consensus(path: Path) -> tuple[list[Consensus], int]:
    """Every film with such a sentence, and how many have none after all ("No consensus yet.").

    Raises:
      DataError: the file is not this table.
    """
    query = (
        "SELECT o.Title, o.Year, t.Consensus, t.Meter, o.Genre"
        " FROM tomatoes t JOIN omdb o ON o.ID = t.ID"
        " WHERE t.Consensus <> '' AND o.Title <> '' AND o.Year IS NOT NULL ORDER BY o.ID"
    )
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path} is not the film table ({error})") from error
    found = [
        Consensus(
            number,
            repaired(title),
            year,
            repaired(sentence),
            meter,
            tuple((genre or "").split(", ")),
        )
        for number, (title, year, sentence, meter, genre) in enumerate(rows)
    ]
    kept = [one for one in found if one.sentence not in ("", _NO_CONSENSUS)]
    return kept, len(found) - len(kept)


def _write_consensus(
    name: str,
    classes: Sequence[str],
    labels: Sequence[int | None],
    of_films: Sequence[Consensus],
    folder: Path,
    **described: Any,
) -> Counter[str]:
    """Writes a corpus of the sentences; returns how many have each class."""
    texts = [
        Text(
            f"c{one.number}",
            film_group(one.title),
            _TITLE.render({"title": one.title, "year": one.year}),
            (one.sentence,),
            label,
        )
        for one, label in zip(of_films, labels, strict=True)
    ]
    spec = CorpusSpec(
        name=name,
        id="text_id",
        group="film",
        text="text",
        about="title",
        classes=tuple(classes),
        licence=CONSENSUS_TABLE.licence,
        **described,
    )
    write_corpus(folder, spec, texts)
    return Counter(classes[label] for label in labels if label is not None)


def build_consensus(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus of verdicts; returns a line about it and what was left out."""
    found, without = read_consensus(sources[CONSENSUS_TABLE.name] / "movies.db")
    labels = [None if one.meter is None else int(one.meter >= _FRESH_METER) for one in found]
    counts = _write_consensus(
        "film-consensus",
        VERDICTS,
        labels,
        found,
        folder,
        label="verdict",
        question="What do the critics say?",
        description=f"what critics agree on about {len(found):,} films",
        provenance={"left_out": {"no consensus": without}},
    )
    return (
        f"film-consensus: {len(found):,} films, {counts['fresh']:,} fresh, {counts['rotten']:,} "
        f"rotten; left out: {without} without one"
    )


def build_genres(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus of genres; returns a line about it and what was left out."""
    found, without = read_consensus(sources[CONSENSUS_TABLE.name] / "movies.db")
    genres = film_plots.rarest_genres([one.genres for one in found], _GENRES)
    labels = [None if genre is None else film_plots.CLASSES.index(genre) for genre in genres]
    counts = _write_consensus(
        "film-genres",
        film_plots.CLASSES,
        labels,
        found,
        folder,
        label="genre",
        question=film_plots.QUESTION,
        description=f"the genres of {len(found):,} films that critics agree on",
        provenance={"left_out": {"no consensus": without}},
    )
    return (
        f"film-genres: {len(found):,} films, {counts.total():,} with one of {len(counts)} genres; "
        f"left out: {without} without a consensus"
    )


ATTRIBUTES = PublicDataset(
    name="film-attributes",
    description="what is known of films, as text",
    sources=(FILM_TABLE,),
    build=build_attributes,
    spec_file=CORPUS_FILE,
)
CONSENSUS = PublicDataset(
    name="film-consensus",
    description="what critics agree on about films",
    sources=(CONSENSUS_TABLE,),
    build=build_consensus,
    version=2,  # with verdicts
    spec_file=CORPUS_FILE,
)
GENRES = PublicDataset(
    name="film-genres",
    description="what critics agree on about films, with their genres",
    sources=(CONSENSUS_TABLE,),
    build=build_genres,
    spec_file=CORPUS_FILE,
)
