"""Made-up viewers of real films: a data set that may be passed on with what is trained on it.

No person stands behind them, so what is trained on them may be passed on. A viewer has tastes, in
genres, people, a time and countries; films that many critics wrote about and that won prizes are
watched by more; and what a viewer thinks of a film is the sum of its tastes, of what critics
thought, and of chance:

    liking = 2 genres + 2 people + 0.8 years + 0.5 country + 0.5 critics + 0.3 chance

each of the first four between -1 or 0 and 1. A viewer watches films with a probability that grows
with their fame and with the liking that can be known before, and likes the better half, more or
less, of what it watched.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.data.dataset.reading import write_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from tasks.films.table import Film, FilmTable

VIEWERS, SEED = 5_000, 0
# What counts people and countries counts in text, too: the first few.
_DIRECTORS, _ACTORS, _COUNTRIES = 2, 2, 2
# Of a hundred films, those that are as well known as this or better.
_FAME_WORDS = ((2, "famous"), (10, "well known"), (40, "known"), (100, "little known"))
_CRITICS_WORDS = ((85, "acclaimed"), (60, "praised"), (40, "of mixed reviews"), (0, "panned"))
_GENRES, _PEOPLE, _YEARS, _COUNTRY, _CRITICS, _CHANCE = 2.0, 2.0, 0.8, 0.5, 0.5, 0.3
# How much likelier a film is watched for each unit of liking, by its logarithm.
_CHOOSINESS = 1.0
_FEWEST_EVENTS, _MOST_EVENTS = 12, 36
_LEADING_ACTORS = 2
_FIRST_DAY, _DAYS = 16_436, 3_650  # 2015-01-01, ten years
_DAY = 86_400


class Watched(NamedTuple):
    """A film, by its index, that a viewer watched; no two at the same time in unix seconds."""

    viewer: int
    film: int
    time: int
    liked: int


def people(film: Film) -> tuple[str, ...]:
    """Whom one may watch a film for: who directed it, and its best known actors."""
    return tuple(dict.fromkeys((*film.director, *film.cast[:_LEADING_ACTORS])))


def fame(films: Sequence[Film]) -> np.ndarray:
    """How much likelier each film is watched than another, float64 `[films]`.

    Reviews are counted against the mean of their decade, since critics wrote less on the web about
    what is older than the web.
    """
    decades: dict[int, list[int]] = defaultdict(list)
    for film in films:
        decades[film.year // 10].append(film.reviews)
    means = {decade: max(1.0, float(np.mean(counts))) for decade, counts in decades.items()}
    written = np.asarray([film.reviews / means[film.year // 10] for film in films])
    won = (re.search(r"Won (\d+)", film.awards or "") for film in films)
    prizes = np.asarray([int(found[1]) if found else 0 for found in won])
    return (0.1 + written) ** 1.5 * np.sqrt(1 + prizes)


def make_viewers(films: Sequence[Film], count: int, seed: int) -> Iterator[Watched]:
    """Yields what viewers watched, viewer by viewer, in the order of time; the seed decides."""
    world = _World(films)
    for viewer in range(count):
        yield from world.watched(viewer, np.random.default_rng([seed, viewer]))


class _World:
    """The films as arrays."""

    def __init__(self, films: Sequence[Film]) -> None:
        self.log_fame = np.log(fame(films))
        self._films = films
        names = Counter(name for film in films for name in film.genre)
        self._genres = {name: index for index, name in enumerate(sorted(names))}
        weights = np.sqrt([names[name] for name in self._genres])
        self._genre_share = weights / weights.sum()
        self._is_genre = np.zeros((len(films), len(self._genres)))
        self._films_of: dict[str, list[int]] = defaultdict(list)
        for index, film in enumerate(films):
            for name in film.genre:
                self._is_genre[index, self._genres[name]] = 1.0
            for name in people(film):
                self._films_of[name].append(index)
        self._is_genre /= np.maximum(1.0, self._is_genre.sum(axis=1, keepdims=True))
        self._years = np.asarray([film.year for film in films])
        self._first_country = np.asarray([(film.country or ("",))[0] for film in films])
        meters = np.asarray([50 if film.meter is None else film.meter for film in films])
        self._critics = (meters - 50) / 50

    def watched(self, viewer: int, rng: np.random.Generator) -> list[Watched]:
        known = self._liking(rng)
        keys = self.log_fame + _CHOOSINESS * known + rng.gumbel(size=len(known))
        count = int(rng.integers(_FEWEST_EVENTS, _MOST_EVENTS + 1))
        seen = rng.permutation(np.argpartition(-keys, count)[:count])
        liking = known[seen] + _CRITICS * self._critics[seen] + _CHANCE * rng.normal(size=count)
        threshold = np.median(liking) + 0.3 * rng.normal()
        gaps = 1 + rng.exponential(5.0, count).astype(np.int64)
        days = _FIRST_DAY + int(rng.integers(_DAYS)) + np.cumsum(gaps)
        times = days * _DAY + rng.integers(18 * 3600, 23 * 3600, count)
        return [
            Watched(viewer, int(film), int(time), int(value > threshold))
            for film, time, value in zip(seen, times, liking, strict=True)
        ]

    def _liking(self, rng: np.random.Generator) -> np.ndarray:
        """What a new viewer can know before it watches, `[films]`."""
        drawn = rng.choice(len(self._genres), 5, replace=False, p=self._genre_share)
        tastes = np.zeros(len(self._genres))
        tastes[drawn] = (1.0, 1.0, -1.0, -1.0, -1.0)
        genres = np.clip(2.0 * self._is_genre @ tastes, -1.0, 1.0)
        # Whom one likes, and of what time and country, comes from a few films that one liked.
        share = np.exp(self.log_fame + 2.0 * genres)
        liked = rng.choice(len(self._films), 5, p=share / share.sum())
        favourite = np.zeros(len(self._films))
        for film in liked:
            of_each = [self._films_of[name] for name in people(self._films[film])]
            favourite[max(of_each, key=len, default=[])] = 1.0
        near = np.exp(-(((self._years - self._years[liked[0]]) / 12.0) ** 2))
        home = self._first_country == self._first_country[liked[1]]
        return _GENRES * genres + _PEOPLE * favourite + _YEARS * near + _COUNTRY * home


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
            "fame": next(word for most, word in _FAME_WORDS if percent[number] <= most),
            "critics": None
            if film.meter is None
            else next(word for least, word in _CRITICS_WORDS if film.meter >= least),
        }
        for number, film in enumerate(films)
    ]


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Makes the viewers and writes the tables."""
    films = FilmTable.load(raw["film-table"] / "movies.db").films
    users = [{"user_id": f"v{viewer}"} for viewer in range(VIEWERS)]
    events = [
        {"user_id": f"v{viewer}", "item_id": f"f{film}", "timestamp": time, "liked": float(liked)}
        for viewer, film, time, liked in make_viewers(films, VIEWERS, SEED)
    ]
    write_dataset(folder, DatasetSpec.load(folder), users, items_of(films), events)
    return {}
