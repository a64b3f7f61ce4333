"""Book-Crossing as a data set folder: readers, books, and who took which book.

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
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.data.dataset.reading import write_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.rendering.corpora import repaired

# The dump was made in 2004; its books' years go on to 2050.
_YEARS = range(1401, 2005)
_AGES = range(5, 101)
_SEED = 0


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the tables; counts broken rows that are left out and values taken out of others."""
    counts: Counter[str] = Counter()
    files = raw["book-crossing"]
    users = _users(_rows(files / "BX-Users.csv", counts), counts)
    books = _books(_rows(files / "BX-Books.csv", counts), counts)
    ratings = _ratings(_rows(files / "BX-Book-Ratings.csv", counts), users, books, counts)
    draws = draw_order([f"{user}:{isbn}" for user, isbn in ratings])
    readers, isbns = zip(*ratings, strict=True)
    values = [*ratings.values()]
    events = {"user_id": readers, "item_id": isbns, "draw": draws, "rating": values}
    spec = DatasetSpec.load(folder)
    write_dataset(folder, spec, [*users.values()], [*books.values()], events)
    return counts


def draw_order(keys: list[str], seed: int = _SEED) -> list[int]:
    """The place of each row in a random order that depends on their keys and the seed alone."""
    hashes = [hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in keys]
    order = sorted(range(len(keys)), key=hashes.__getitem__)
    places: list[int] = np.argsort(order).tolist()
    return places


def _rows(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """The rows of a file after its header, without those of another number of columns."""
    # Fields hold line breaks, and quotation marks behind backslashes.
    with path.open(encoding="latin-1", newline="") as file:
        rows = csv.reader(file, delimiter=";", quotechar='"', escapechar="\\")
        width = len(next(rows))
        for row in rows:
            if len(row) == width:
                yield [" ".join(value.split()) for value in row]
            else:
                counts[f"broken rows of {path.name} left out"] += 1


def _users(rows: Iterable[list[str]], counts: Counter[str]) -> dict[str, dict[str, Any]]:
    users: dict[str, dict[str, Any]] = {}
    for user, location, age in rows:
        if not user or user in users:
            counts["users without an id of their own left out"] += 1
            continue
        years = int(age) if age.isdigit() else None
        if years is not None and years not in _AGES:
            counts["unlikely ages emptied"] += 1
            years = None
        city, *region, country = [_name(repaired(part)) for part in location.split(",")] + (
            [] if "," in location else [None]
        )
        users[user] = {
            "user_id": user,
            "age": years,
            "city": city,
            "region": ", ".join(filter(None, region)) or None,
            "country": country,
        }
    return users


def _books(rows: Iterable[list[str]], counts: Counter[str]) -> dict[str, dict[str, Any]]:
    books: dict[str, dict[str, Any]] = {}
    for isbn, *texts in rows:
        title, author, year, publisher = (repaired(text) for text in texts[:4])
        if not isbn or isbn.upper() in books:
            counts["books without an ISBN of their own left out"] += 1
            continue
        if not title:
            counts["books without a title left out"] += 1
            continue
        published = int(year) if year.isdigit() else 0
        if published not in _YEARS:
            counts["unlikely years emptied"] += 1
        books[isbn.upper()] = {
            "item_id": isbn.upper(),
            "title": title,
            # Some sources write authors in capitals, and so make two of one.
            "author": _name(author.title() if author.isupper() else author),
            "year": published if published in _YEARS else None,
            "publisher": _name(publisher),
        }
    return books


def _ratings(
    rows: Iterable[list[str]], users: Collection[str], books: Collection[str], counts: Counter[str]
) -> dict[tuple[str, str], float]:
    """(user, ISBN) -> rating."""
    ratings: dict[tuple[str, str], float] = {}
    for user, isbn, rating in rows:
        key = (user, isbn.upper())
        if not (rating.isdigit() and int(rating) <= 10):
            counts["ratings outside 0 to 10 left out"] += 1
        elif user not in users or key[1] not in books:
            counts["ratings of unknown readers or books left out"] += 1
        elif key in ratings:
            counts["repeated ratings left out"] += 1
        else:
            ratings[key] = float(rating)
    return ratings


def _name(text: str) -> str | None:
    """A name, None for what people write where there is none."""
    return None if re.fullmatch(r"(n/?a|none|unknown|not applicable|[\W_]*)", text, re.I) else text
