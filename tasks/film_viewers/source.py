"""Made-up viewers of real films: a data set that may be passed on with what is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.data.reading import write_dataset
from m6rec_jax.data.schema import DatasetSpec
from tasks.films.made_up_viewers import fame, make_viewers
from tasks.films.table import Film, FilmTable

VIEWERS, SEED = 5_000, 0
# What counts people and countries counts in text, too: the first few.
_DIRECTORS, _ACTORS, _COUNTRIES = 2, 2, 2
# Of a hundred films, those that are as well known as this or better.
_FAME = ((2, "famous"), (10, "well known"), (40, "known"), (100, "little known"))
_CRITICS = ((85, "acclaimed"), (60, "praised"), (40, "of mixed reviews"), (0, "panned"))


def items_of(films: Sequence[Film]) -> list[dict[str, Any]]:
    """Rows of the items table, in the order of the films."""
    known = fame(films)
    percent = np.empty(len(films))
    percent[np.argsort(-known, kind="stable")] = 100 * (np.arange(len(films)) + 1) / len(films)
    return [
        {
            "item_id": f"f{number}",
            "title": film.title,
            "year": film.year,
            "decade": f"{film.year // 10}0s",
            "genres": [name.lower() for name in film.genre],
            "director": list(film.director[:_DIRECTORS]),
            "cast": list(film.cast[:_ACTORS]),
            "country": list(film.country[:_COUNTRIES]),
            "fame": next(word for most, word in _FAME if percent[number] <= most),
            "critics": None
            if film.meter is None
            else next(word for least, word in _CRITICS if film.meter >= least),
        }
        for number, film in enumerate(films)
    ]


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Makes the viewers and writes the tables."""
    films = FilmTable.load(raw["film-table"] / "movies.db").films
    users = [{"user_id": f"v{viewer}"} for viewer in range(VIEWERS)]
    events = [
        {
            "user_id": f"v{one.viewer}",
            "item_id": f"f{one.film}",
            "timestamp": one.time,
            "liked": float(one.liked),
        }
        for one in make_viewers(films, VIEWERS, SEED)
    ]
    types = {"timestamp": "int", "liked": "float"}
    write_dataset(folder, DatasetSpec.load(folder), users, items_of(films), events, types)
    return {}
