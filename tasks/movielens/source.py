"""MovieLens-100k as a canonical data set folder, with film attributes joined on title and year.

The ratings come in one of two forms that hold the same rows in the same order: GroupLens's own
files (`u.data`, `u.item`, `u.user`) or the tab-separated files of a package archive
(`ml-100k.inter`, `.item`, `.user`). Either gives the same tables. (`ml-100k.inter` below its header
*is* `u.data`, byte for byte; in `u.item` the year is part of the title.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m6rec_jax.data.reading import write_dataset
from m6rec_jax.data.schema import (
    DatasetSpec,
    EventsSpec,
    ItemsSpec,
    LabelSpec,
    StatisticsSpec,
    TableSpec,
)
from m6rec_jax.data.sources import (
    ArchiveRoute,
    PackageRoute,
    PublicDataset,
    Source,
    register_dataset,
)
from m6rec_jax.errors import DataError
from tasks.films.table import FILM_COLUMNS, FILM_TABLE, FilmTable, natural_title

# The order of the genre flags in u.item.
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_GENDERS = {"M": "male", "F": "female"}

USER_COLUMNS = {"age": "int", "gender": "string", "occupation": "string", "zip_code": "string"}
ITEM_COLUMNS = {
    "title": "string",
    "other_title": "string",
    "year": "int",
    "genres": "list<string>",
    **FILM_COLUMNS,
}

# Text costs time: a behaviour is its outcome, title and age, and the clauses of a candidate are so
# formed that each can be one piece of a vocabulary. Only titles must be known: requests may lack
# all else.
TEMPLATE: Mapping[str, Any] = {
    "profile": "[{age} year old][ {gender}][ {occupation}]"
    "[, liked {user_positive_percent}% of {user_count} films][, rates {user_mean_value}]",
    "event": "[{outcome} ]{title}[ ({year})][, {ago}]",
    "context": "[{weekday} {part_of_day}]",
    "candidate": "{title}[ ({year})][, {genres}]"
    "[, rated {item_mean_value}][, {item_positive_percent}% like it][, {item_count} views]"
    "[, user rates {user_mean_value}][, user likes {user_positive_percent}%]"
    "[, likes {user_genres_percent}% of such genres]"
    "[, likes {user_neighbours_percent}% of similar films][, taste {user_taste_difference}]"
    "[, expected {user_expected_value}]",
    "item": "{title}[ ({year})][, {genres}][, by {director}]",
    # An explanation is asked for about a film; titles and queries are written for a user alone.
    # There is no public log of searches for films: a query is what one may type who wants this one.
    "writing": {
        "explanations": {
            # Genres begin as in the text to write: the same pieces, to be taken over.
            "about": "{title}[ ({year})][. {genres}][. By {director}][. With {cast}]"
            "[. From {country}][. {awards}]",
            "prefix": "because",
            "text": "[By {shared_director}, like {shared_director_in}.]"
            "[ With {shared_cast}, like {shared_cast_in}.]"
            "[ {shared_genres} again, like {shared_genres_in}.]"
            "[ From {shared_country}, like {shared_country_in}.][ {awards}]",
            "liked": "{title}[ ({year})]",
        },
        "contents": {"prefix": "category:", "text": "[{genres}. ]title: {title}[ ({year})]"},
        "titles": {"prefix": "[category: {genres}. ]title:", "text": "{title}[ ({year})]"},
        "queries": {
            "prefix": "[category: {genres}. ]searches:",
            "text": "[films by {director}[ from {country}]]",
        },
    },
    "outcomes": [
        {"at_least": 5, "text": "loved"},
        {"at_least": 4, "text": "liked"},
        {"at_least": 3, "text": "tolerated"},
        {"at_least": 2, "text": "disliked"},
        {"text": "hated"},
    ],
}

SPLITS: Mapping[str, Any] = {
    "per_user_temporal": {"train": 0.8, "validation": 0.1},
    "leave_one_out": {},
}


def dataset_spec(name: str, description: str, provenance: Mapping[str, Any]) -> DatasetSpec:
    """The `dataset.json` of a MovieLens data set: label is a rating of 4 or 5."""
    return DatasetSpec(
        name=name,
        description=description,
        licence="GroupLens: research use, no redistribution; film attributes CC0-1.0",
        users=TableSpec("user_id", USER_COLUMNS, "users.parquet"),
        items=ItemsSpec("item_id", ITEM_COLUMNS, "items.parquet"),
        events=EventsSpec("user_id", "item_id", "timestamp", "rating", "events.parquet"),
        label=LabelSpec(at_least=4),
        statistics=StatisticsSpec(by=("genres", "director")),
        template=TEMPLATE,
        splits=SPLITS,
        provenance=provenance,
    )


@dataclass(frozen=True, slots=True)
class RawTables:
    """The rows of either form, cleaned: dictionaries from column to value, in file order."""

    users: Sequence[Mapping[str, Any]]
    items: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]


def read_raw(folder: Path) -> RawTables:
    """Reads the raw files of whichever form lies in the folder.

    Raises:
      DataError: neither form is there, or a line does not have the form's columns.
    """
    if (folder / "u.data").is_file():
        return _read_grouplens(folder)
    if (folder / "ml-100k.inter").is_file():
        return _read_atomic(folder)
    raise DataError(f"{folder} has neither u.data nor ml-100k.inter")


def _read_grouplens(folder: Path) -> RawTables:
    users = [
        _user(*row)
        for row in _lines(folder / "u.user", "|", ("id", "age", "gender", "occupation", "zip"))
    ]
    columns = ("id", "title", "release date", "video date", "address", *GENRES)
    items = []
    for identifier, title, _, _, _, *flags in _lines(folder / "u.item", "|", columns, "latin-1"):
        # Notes on the medium follow the year: "... (1995) (V)".
        found = re.match(r"^(.*?)\s*\((\d{4})\)\s*(\(T?V\))?$", title.strip())
        name, year = (found[1], found[2]) if found else (title, None)
        genres = [genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1"]
        items.append(_item(identifier, name, year, genres))
    events = [
        _event(*row) for row in _lines(folder / "u.data", "\t", ("user", "item", "rating", "time"))
    ]
    return RawTables(users, items, events)


def _read_atomic(folder: Path) -> RawTables:
    path = folder / "ml-100k.user"
    user_columns = ("user_id:token", "age:token", "gender:token", "occupation:token")
    users = [
        _user(*row) for row in _lines(path, "\t", (*user_columns, "zip_code:token"), header=True)
    ]
    path = folder / "ml-100k.item"
    item_columns = ("item_id:token", "movie_title:token_seq", "release_year:token")
    items = []
    for identifier, title, year, genres in _lines(
        path, "\t", (*item_columns, "class:token_seq"), header=True
    ):
        # Where a note on the medium follows the year, the year was left in the title.
        if year in ("V", "TV") and (found := re.match(r"^(.*?)\s*\((\d{4})\)$", title)):
            title, year = found[1], found[2]
        items.append(_item(identifier, title, year, genres.split()))
    path = folder / "ml-100k.inter"
    event_columns = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    events = [_event(*row) for row in _lines(path, "\t", event_columns, header=True)]
    return RawTables(users, items, events)


def _lines(
    path: Path,
    separator: str,
    columns: Sequence[str],
    encoding: str = "utf-8",
    *,
    header: bool = False,
) -> Iterator[list[str]]:
    """Yields the fields of each line; with `header`, the first line must be `columns`."""
    try:
        with path.open(encoding=encoding, newline="\n") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip("\r\n").split(separator)
                if header and number == 1:
                    if fields != list(columns):
                        raise DataError(f"{path}: the header is {fields}, not {list(columns)}")
                    continue
                if len(fields) != len(columns):
                    raise DataError(
                        f"{path}, line {number}: {len(fields)} columns, not {len(columns)} "
                        f"({', '.join(columns)})"
                    )
                yield fields
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: invalid UTF-8 at offset {error.start} of a block") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _user(identifier: str, age: str, gender: str, occupation: str, zip_code: str) -> dict[str, Any]:
    return {
        "user_id": identifier,
        "age": int(age),
        "gender": _GENDERS.get(gender),
        # "other" and "none" say nothing about anybody.
        "occupation": None if occupation in ("other", "none") else occupation,
        "zip_code": zip_code,
    }


def _item(identifier: str, title: str, year: str | None, genres: Iterable[str]) -> dict[str, Any]:
    # Item 267 has no title; one form spells even "unknown" wrongly.
    title = "unknown" if title.strip() in ("unknown", "unkonwn") else title
    natural = natural_title(title)
    bracketed = re.match(r"^(.+?) \((.+)\)$", natural)
    return {
        "item_id": identifier,
        "title": bracketed[1] if bracketed else natural,
        "other_title": bracketed[2] if bracketed else None,
        "year": int(year) if year and year.isdigit() else None,
        "genres": [genre.lower() for genre in genres if genre != "unknown"],
    }


def _event(user: str, item: str, rating: str, time: str) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "timestamp": int(time), "rating": float(rating)}


def join_film_attributes(
    items: Sequence[Mapping[str, Any]], films: FilmTable
) -> list[dict[str, Any]]:
    """Adds the columns `FILM_COLUMNS` to items; those not found get None and empty lists."""
    joined = []
    for item in items:
        other = item["other_title"]
        title = f"{item['title']} ({other})" if other else item["title"]
        film = films.find(title, item["year"])
        attributes: dict[str, Any] = {}
        for name, kind in FILM_COLUMNS.items():
            missing: list[str] | None = [] if kind == "list<string>" else None
            attributes[name] = missing if film is None else getattr(film, name)
        joined.append({**item, **attributes})
    return joined


def write_canonical(raw: RawTables, films: FilmTable, folder: Path, name: str) -> str:
    """Writes the canonical folder and returns a line about what it holds and how much was joined.

    Args:
      raw: users, items and events.
      films: the film table.
      folder: exists; gets three Parquet files and `dataset.json`.
      name: name of the data set.
    """
    items = join_film_attributes(raw.items, films)
    found = {
        item["item_id"]
        for item in items
        if any(item[column] not in (None, [], ()) for column in FILM_COLUMNS)
    }
    ratings = Counter(event["item_id"] for event in raw.events)
    covered = sum(count for item, count in ratings.items() if item in found)
    percent = round(100 * covered / max(1, len(raw.events)), 2)
    spec = dataset_spec(
        name,
        f"{len(raw.events):,} film ratings of {len(raw.users):,} users, 1 to 5, with times",
        {"film_attributes": {"items": len(found), "percent_of_events": percent}},
    )
    times = {"timestamp": "int", "rating": "float"}
    write_dataset(folder, spec, raw.users, items, raw.events, times)
    return (
        f"{name}: {len(raw.users):,} users, {len(items):,} items, {len(raw.events):,} events; "
        f"film attributes for {len(found):,} items, {percent:g}% of the events"
    )


def _build(sources: Mapping[str, Path], folder: Path) -> str:
    films = FilmTable.load(sources["film-table"] / "movies.db")
    return write_canonical(read_raw(sources["ml-100k"]), films, folder, "movielens-100k")


_HOME = {
    "ml-100k/u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "ml-100k/u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "ml-100k/u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}
_PACKAGE = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
RATINGS = Source(
    name="ml-100k",
    title="MovieLens-100k (GroupLens Research, University of Minnesota)",
    licence="research use, no redistribution",
    terms=(
        "Do not state or imply an endorsement by the University of Minnesota or GroupLens.\n"
        "Acknowledge the use of the data in publications: Harper and Konstan, 'The MovieLens "
        "Datasets: History and Context', ACM TiiS 5(4), 2015.\n"
        "Do not pass the data on, and do not use it for commercial purposes, without permission.\n"
        "Full terms: the README of ml-100k at grouplens.org/datasets/movielens/100k"
    ),
    routes=(
        ArchiveRoute(
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            _HOME,
        ),
        PackageRoute(
            "recbole",
            "1.2.1",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            {f"recbole/dataset_example/ml-100k/{name}": _PACKAGE[name] for name in _PACKAGE},
        ),
    ),
)

DATASET = register_dataset(
    PublicDataset(
        name="movielens-100k",
        description="100,000 film ratings with times, users and film attributes",
        build=_build,
        version=6,  # all but titles may be missing
        sources=(RATINGS, FILM_TABLE),
    )
)
