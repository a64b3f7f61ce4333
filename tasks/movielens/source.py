"""MovieLens-100k as a data set folder, with film attributes joined on title and year."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m6rec_jax.data.dataset.reading import write_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from tasks.films.table import FILM_COLUMNS, FilmTable, natural_title

_GENDERS = {"M": "male", "F": "female"}


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the tables; counts the items that the film table knows."""
    ratings = raw["ml-100k"]
    users = [
        {
            "user_id": user,
            "age": int(age),
            "gender": _GENDERS[gender],
            # "other" and "none" say nothing about anybody.
            "occupation": None if occupation in ("other", "none") else occupation,
            "zip_code": zip_code,
        }
        for user, age, gender, occupation, zip_code in _rows(ratings / "ml-100k.user")
    ]
    films = FilmTable.load(raw["film-table"] / "movies.db")
    items = [_item(films, *row) for row in _rows(ratings / "ml-100k.item")]
    events = [
        {"user_id": user, "item_id": item, "timestamp": int(time), "rating": float(rating)}
        for user, item, rating, time in _rows(ratings / "ml-100k.inter")
    ]
    write_dataset(folder, DatasetSpec.load(folder), users, items, events)
    with_attributes = (any(item[column] for column in FILM_COLUMNS) for item in items)
    return {"items with film attributes": sum(with_attributes)}


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def _item(films: FilmTable, identifier: str, title: str, year: str, genres: str) -> dict[str, Any]:
    # Where a note on the medium follows the year, the year was left in the title.
    if year in ("V", "TV") and (dated := re.match(r"^(.*?)\s*\((\d{4})\)$", title)):
        title, year = dated[1], dated[2]
    # Item 267 has no title.
    title = natural_title("unknown" if title == "unkonwn" else title)
    released = int(year) if year.isdigit() else None
    film = films.find(title, released)
    bracketed = re.match(r"^(.+?) \((.+)\)$", title)
    return {
        "item_id": identifier,
        "title": bracketed[1] if bracketed else title,
        "other_title": bracketed[2] if bracketed else None,
        "year": released,
        "genres": [genre.lower() for genre in genres.split() if genre != "unknown"],
        **{
            column: getattr(film, column, [] if kind == "list<string>" else None)
            for column, kind in FILM_COLUMNS.items()
        },
    }
