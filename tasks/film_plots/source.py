"""Film plots as a corpus whose classes are genres.

A film of the plots file has up to a dozen categories, from "Drama" to "Courtroom Comedy". Its class
is the rarest of its genres among `GENRES`, which says most about it: a western that is a drama too
is a western. Films without any of them, and the plots that come with the review snippets, have no
class and serve for language alone.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import repaired
from tasks.films.texts import film_text, rarest_genres, read_snippets, write_texts

_WIKI_MARKS = re.compile(r"\[\[|\]\]|\{\{|\}\}")


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    with (raw["plots"] / "movies.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    genres = rarest_genres([re.findall(r'"([^"]+)"', row["Category"]) for row in rows])
    texts = []
    for number, (row, genre) in enumerate(zip(rows, genres, strict=True)):
        title = repaired(row["Title"])
        plot = " ".join(_WIKI_MARKS.sub(" ", repaired(row["Plot"])).split())
        texts.append(film_text(f"p{number}", title, title, plot, genre))
    texts += [
        film_text(f"s{number}", film, film, plot)
        for number, (category, film, plot) in enumerate(read_snippets(raw["review-snippets"]))
        if category == "plot"
    ]
    return write_texts(folder, texts)
