"""Made-up viewers of real films: a data set that may be passed on with what is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.data.reading import write_dataset
from m6rec_jax.data.schema import (
    DatasetSpec,
    EventsSpec,
    ItemsSpec,
    LabelSpec,
    StatisticsSpec,
    TableSpec,
)
from m6rec_jax.data.sources import PublicDataset, register_dataset
from tasks.films.made_up_viewers import fame, make_viewers
from tasks.films.table import FILM_TABLE, Film, FilmTable

VIEWERS, SEED = 5_000, 0

ITEM_COLUMNS = {
    "title": "string",
    "year": "int",
    "decade": "string",
    "genres": "list<string>",
    "director": "list<string>",
    "cast": "list<string>",
    "country": "list<string>",
    "fame": "string",
    "critics": "string",
}
# What counts people and countries counts in text, too: the first few.
_DIRECTORS, _ACTORS, _COUNTRIES = 2, 2, 2
# Of a hundred films, those that are as well known as this or better.
_FAME = ((2, "famous"), (10, "well known"), (40, "known"), (100, "little known"))
_CRITICS = ((85, "acclaimed"), (60, "praised"), (40, "of mixed reviews"), (0, "panned"))

# No statistic of an item: what made-up viewers thought of a real film is nobody's opinion.
TEMPLATE: Mapping[str, Any] = {
    "event": "{outcome} {title}[ ({year})][, {genres}][, by {director}][, with {cast}]",
    "candidate": "{title}[ ({year})][, {genres}][, {fame}][, {critics}]"
    "[, likes {user_genres_percent}% of such genres]"
    "[, likes {user_director_percent}% by such directors]"
    "[, likes {user_cast_percent}% with such actors]"
    "[, likes {user_decade_percent}% of the decade]"
    "[, likes {user_country_percent}% from there]",
    "item": "{title}[ ({year})][, {genres}][, by {director}][, with {cast}][, from {country}]"
    "[, {fame}][, {critics}]",
    "writing": {
        "explanations": {
            "about": "{title}[ ({year})]",
            "prefix": "because",
            "text": "[By {shared_director}, like {shared_director_in}.]"
            "[ With {shared_cast}, like {shared_cast_in}.]"
            "[ {shared_genres} again, like {shared_genres_in}.]",
            "liked": "{title}[ ({year})]",
        }
    },
    "outcomes": [{"at_least": 1, "text": "liked"}, {"text": "disliked"}],
}


def items_of(films: tuple[Film, ...]) -> list[dict[str, Any]]:
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


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Makes the viewers and writes the data set; returns a line about it."""
    films = FilmTable.load(sources[FILM_TABLE.name] / "movies.db").films
    watched = list(make_viewers(films, VIEWERS, SEED))
    line = (
        f"{VIEWERS:,} made-up viewers of {len(films):,} films, {len(watched):,} likes and dislikes"
    )
    spec = DatasetSpec(
        name="film-viewers",
        description=f"{line}; no person stands behind them",
        licence="CC0-1.0",
        users=TableSpec("user_id", {}, "users.parquet"),
        items=ItemsSpec("item_id", ITEM_COLUMNS, "items.parquet"),
        events=EventsSpec("user_id", "item_id", "timestamp", "liked", "events.parquet"),
        label=LabelSpec(at_least=1),
        statistics=StatisticsSpec(by=("genres", "director", "cast", "decade", "country")),
        template=TEMPLATE,
        splits={"per_user_temporal": {"train": 0.8, "validation": 0.1}},
        provenance={"synthetic": "viewers, and what they watched and liked", "seed": SEED},
    )
    events: dict[str, list[Any]] = {
        "user_id": [f"v{one.viewer}" for one in watched],
        "item_id": [f"f{one.film}" for one in watched],
        "timestamp": [one.time for one in watched],
        "liked": [float(one.liked) for one in watched],
    }
    users = [{"user_id": f"v{viewer}"} for viewer in range(VIEWERS)]
    write_dataset(
        folder, spec, users, items_of(films), events, {"timestamp": "int", "liked": "float"}
    )
    return f"film-viewers: {line}"


DATASET = register_dataset(
    PublicDataset(
        name="film-viewers",
        description="made-up viewers of real films: what they liked",
        sources=(FILM_TABLE,),
        build=build,
    )
)
