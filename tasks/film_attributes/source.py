"""What is known of films, in sentences: director, cast, country, awards."""

from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import repaired
from m6rec_jax.text.format_strings import Template
from tasks.films.table import FILM_COLUMNS, FilmTable
from tasks.films.texts import TITLE, film_text, write_texts

_DESCRIPTION = Template.parse(
    "[A {genre} film.][ Directed by {director}.][ Written by {writer}.][ With {cast}.]"
    "[ Made in {country}.][ In {language}.][ It takes {runtime} minutes.][ Rated {certificate}.]"
    "[ Awards: {awards}.]",
    "description",
)


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    texts = []
    for number, film in enumerate(FilmTable.load(raw["film-table"] / "movies.db").films):
        values = {column: getattr(film, column) for column in FILM_COLUMNS} | {
            "genre": ", ".join(name.lower() for name in film.genre),
            "awards": film.awards and film.awards.rstrip("."),
        }
        description = repaired(_DESCRIPTION.render(values))
        about = repaired(TITLE.render({"title": film.title, "year": film.year}))
        texts.append(film_text(f"f{number}", film.title, about, description))
    return write_texts(folder, texts)
