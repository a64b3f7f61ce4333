"""What tables know of films, told as text: their attributes, and what critics agree on."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.errors import DataError
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
            _TITLE.render({"title": one.title, "year": one.year}),
            (one.sentence,),
            None if one.meter is None else int(one.meter >= _FRESH_METER),
        )
        for one in found
    ]
    return texts, without


def build_consensus(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus of verdicts; returns a line about it and what was left out."""
    texts, without = consensus_texts(sources)
    spec = CorpusSpec(
        name="film-consensus",
        id="text_id",
        group="film",
        text="text",
        about="title",
        label="verdict",
        classes=VERDICTS,
        question="What do the critics say?",
        description=f"what critics agree on about {len(texts):,} films",
        licence=CONSENSUS_TABLE.licence,
        provenance={"left_out": {"no consensus": without}},
    )
    write_corpus(folder, spec, texts)
    counts = Counter(VERDICTS[text.label] for text in texts if text.label is not None)
    return (
        f"film-consensus: {len(texts):,} films, {counts['fresh']:,} fresh, {counts['rotten']:,} "
        f"rotten; left out: {without} without one"
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
