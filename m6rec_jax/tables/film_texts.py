"""What tables know of films, told as text: their attributes, and what critics agree on."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from m6rec_jax.errors import DataError
from m6rec_jax.tables.corpora import CORPUS_FILE, CorpusSpec, Text, write_corpus
from m6rec_jax.tables.film_attributes import FilmTable, film_group
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


def read_consensus(path: Path) -> list[tuple[str, int, str]]:
    """(title, year, what critics agree on) of every film that has such a sentence.

    Raises:
      DataError: the file is not this table.
    """
    query = (
        "SELECT o.Title, o.Year, t.Consensus FROM tomatoes t JOIN omdb o ON o.ID = t.ID"
        " WHERE t.Consensus <> '' AND o.Title <> '' AND o.Year IS NOT NULL ORDER BY o.ID"
    )
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            found: list[tuple[str, int, str]] = connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path} is not the film table ({error})") from error
    return found


def build_consensus(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus of consensus sentences; returns a line about it and what was left out."""
    left_out: Counter[str] = Counter()
    texts = []
    for number, (title, year, raw) in enumerate(
        read_consensus(sources[CONSENSUS_TABLE.name] / "movies.db")
    ):
        sentence = repaired(raw)
        if sentence in ("", _NO_CONSENSUS):
            left_out["no consensus"] += 1
            continue
        about = _TITLE.render({"title": repaired(title), "year": year})
        texts.append(Text(f"c{number}", film_group(repaired(title)), about, (sentence,)))
    spec = CorpusSpec(
        name="film-consensus",
        id="text_id",
        group="film",
        text="text",
        about="title",
        description=f"what critics agree on about {len(texts):,} films",
        licence=CONSENSUS_TABLE.licence,
        provenance={"left_out": dict(left_out)},
    )
    write_corpus(folder, spec, texts)
    return f"film-consensus: {len(texts):,} films; left out: {left_out['no consensus']} without one"


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
    spec_file=CORPUS_FILE,
)
