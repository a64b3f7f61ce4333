"""Film overviews of The Movie Database as a corpus whose classes are genres, those of plots.

An overview says in a few sentences what a film is about; keywords follow it. Its class is the
rarest of the film's genres, as in `tasks.film_plots`.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import repaired
from m6rec_jax.text.format_strings import Template
from tasks.films.texts import GENRE_CLASSES, film_text, rarest_genres, write_texts

_TEXT = Template.parse("{overview}[ It is about {keywords}.]", "text")
# Genre of the file -> of `GENRE_CLASSES`; the others are none of those.
_GENRES = {**{genre.title(): genre for genre in GENRE_CLASSES}, "Music": "musical"}


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    path = raw["film-overviews-table"] / "movies.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    genres = rarest_genres([_names(row["genres"]) for row in rows], _GENRES)
    texts = []
    for number, (row, genre) in enumerate(zip(rows, genres, strict=True)):
        title, overview = repaired(row["title"]), repaired(row["overview"])
        keywords = ", ".join(_names(row["keywords"]))
        text = overview and _TEXT.render({"overview": overview, "keywords": keywords})
        texts.append(film_text(f"o{number}", title, title, text, genre))
    return write_texts(folder, texts)


def _names(text: str) -> list[str]:
    return [one["name"] for one in json.loads(text)]
