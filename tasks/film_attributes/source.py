"""What is known of films, in sentences: director, cast, country, awards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import CORPUS_FILE, Text, repaired
from m6rec_jax.data.sources import PublicDataset, register_dataset
from m6rec_jax.text.format_strings import Template
from tasks.films.table import FILM_TABLE, FilmTable, film_group
from tasks.films.texts import TITLE, write_film_corpus

_DESCRIPTION = Template.parse(
    "[A {genre} film.][ Directed by {director}.][ Written by {writer}.][ With {cast}.]"
    "[ Made in {country}.][ In {language}.][ It takes {runtime} minutes.][ Rated {certificate}.]"
    "[ Awards: {awards}.]",
    "description",
)


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    films = FilmTable.load(sources[FILM_TABLE.name] / "movies.db").films
    texts = []
    for number, film in enumerate(films):
        values = {
            "genre": ", ".join(name.lower() for name in film.genre),
            "awards": film.awards and film.awards.rstrip("."),
        } | {
            name: getattr(film, name)
            for name in _DESCRIPTION.fields
            if name not in ("genre", "awards")
        }
        description = repaired(_DESCRIPTION.render(values))
        title = repaired(TITLE.render({"title": film.title, "year": film.year}))
        if description:
            texts.append(Text(f"f{number}", film_group(film.title), title, (description,)))
    return write_film_corpus(
        folder,
        "film-attributes",
        texts,
        {"nothing known": len(films) - len(texts)},
        description=f"what is known of {len(texts):,} films, as text",
        licence=FILM_TABLE.licence,
    )


DATASET = register_dataset(
    PublicDataset(
        name="film-attributes",
        description="what is known of films, as text",
        sources=(FILM_TABLE,),
        build=build,
        spec_file=CORPUS_FILE,
    )
)
