"""Film overviews of The Movie Database as a corpus whose classes are genres, those of plots.

An overview says in a few sentences what a film is about; keywords follow it. Its class is the
rarest of the film's genres, as in `film_plots`.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.errors import DataError
from m6rec_jax.tables import film_plots
from m6rec_jax.tables.corpora import CORPUS_FILE, CorpusSpec, Text, write_corpus
from m6rec_jax.tables.film_attributes import film_group
from m6rec_jax.tables.film_sources import OVERVIEWS
from m6rec_jax.tables.raw_text import repaired
from m6rec_jax.tables.sources import PublicDataset
from m6rec_jax.text.format_strings import Template

_TEXT = Template.parse("{overview}[ It is about {keywords}.]", "text")
_COLUMNS = ("title", "overview", "genres", "keywords")
# Genre of the file -> of `film_plots.CLASSES`; the others are none of those.
_GENRES: Mapping[str, str] = {
    **{genre.title(): genre for genre in film_plots.CLASSES},
    "Music": "musical",
}


class Overview(NamedTuple):
    """What the file tells of a film.

    Attributes:
      title, overview: repaired; the overview may be empty.
      genres, keywords: as the file names them.
    """

    title: str
    overview: str
    genres: tuple[str, ...]
    keywords: tuple[str, ...]


def read_overviews(path: Path) -> list[Overview]:
    """Every film of the file.

    Raises:
      DataError: the file is not this table.
    """
    found = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: the header has no {', '.join(missing)}")
            for number, row in enumerate(rows, start=1):
                try:
                    genres, keywords = (
                        tuple(str(one["name"]) for one in json.loads(row[name] or ""))
                        for name in ("genres", "keywords")
                    )
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(
                        f"{path}, record {number}: genres or keywords are no list of names "
                        f"({error})"
                    ) from error
                title, overview = (repaired(row[name] or "") for name in ("title", "overview"))
                found.append(Overview(title, overview, genres, keywords))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    return found


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    films = read_overviews(sources[OVERVIEWS.name] / "movies.csv")
    genres = film_plots.rarest_genres([film.genres for film in films], _GENRES)
    texts = [
        Text(
            f"o{number}",
            film_group(film.title),
            film.title,
            (_TEXT.render({"overview": film.overview, "keywords": ", ".join(film.keywords)}),),
            None if genre is None else film_plots.CLASSES.index(genre),
        )
        for number, (film, genre) in enumerate(zip(films, genres, strict=True))
        if film.overview
    ]
    without = len(films) - len(texts)
    spec = CorpusSpec(
        name="film-overviews",
        id="text_id",
        group="film",
        text="text",
        about="title",
        label="genre",
        classes=film_plots.CLASSES,
        question=film_plots.QUESTION,
        description=f"overviews of {len(texts):,} films, with keywords",
        licence=OVERVIEWS.licence,
        provenance={"left_out": {"no overview": without}},
    )
    write_corpus(folder, spec, texts)
    counts = Counter(text.label for text in texts if text.label is not None)
    return (
        f"film-overviews: {len(texts):,} films, {counts.total():,} with one of {len(counts)} "
        f"genres; left out: {without} without an overview"
    )


DATASET = PublicDataset(
    name="film-overviews",
    description="what films are about, most with a genre",
    sources=(OVERVIEWS,),
    build=build,
    spec_file=CORPUS_FILE,
)
