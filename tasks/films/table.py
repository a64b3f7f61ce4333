"""Attributes of films (director, cast, country, ...) joined on title and year.

The film table is a SQLite file of 17,472 films drawn from Wikidata (CC0). It shares no key with
MovieLens, so films are found by their normalised title and a year at most one off: release years
differ between countries.
"""

from __future__ import annotations

import difflib
import re
import sqlite3
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

FILM_COLUMNS: Mapping[str, str] = {
    "director": "list<string>",
    "writer": "list<string>",
    "cast": "list<string>",
    "country": "list<string>",
    "language": "list<string>",
    "runtime": "int",
    "certificate": "string",
    "awards": "string",
}
"""Attribute -> column type. `awards` counts Oscars won later than some of the ratings."""

_NUMBERS = (
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS, start=1)}
_ARTICLES = "the|a|an|le|la|les|l'|un|une|el|los|las|il|lo|i|gli|der|die|das|det|den|de|het|o|os|as"
_TRAILING_ARTICLE = re.compile(rf"^(.*), ({_ARTICLES})$", re.IGNORECASE)
_PARENTHESES = re.compile(r"^(.+?)\s*\((.+)\)$")
_SUBTITLE = re.compile(r":|\s[-–—]\s")
_YEAR_TOLERANCE = 1
_SAME_SERIES = 0.8
_MAX_WRITERS, _MAX_CAST = 3, 4


def natural_title(title: str) -> str:
    """Puts an article back in front: "Godfather, The" becomes "The Godfather".

    A title in brackets is treated the same: "Horseman on the Roof, The (Hussard sur le toit, Le)"
    becomes "The Horseman on the Roof (Le Hussard sur le toit)".
    """
    title = " ".join(title.split())
    if bracketed := _PARENTHESES.match(title):
        return f"{natural_title(bracketed[1])} ({natural_title(bracketed[2])})"
    if trailing := _TRAILING_ARTICLE.match(title):
        space = "" if trailing[2].endswith("'") else " "
        return f"{trailing[2]}{space}{trailing[1]}"
    return title


def normalised_title(title: str) -> str:
    """What is left of a title for comparing: lower-case words and digits, no leading article."""
    text = unicodedata.normalize("NFKD", title)
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = text.casefold().replace("&", " and ")
    text = re.sub(r"['’`*.]", "", text)
    words = re.sub(r"[^\w]+|_", " ", text).split()
    words = [_NUMBER_WORDS.get(word, word) for word in words]
    if len(words) > 1 and words[0] in ("the", "a", "an"):
        words = words[1:]
    return " ".join(words)


def film_group(title: str) -> str:
    """What texts about one film have in common, so that a split keeps them together.

    Any spelling will do: "The Adventures of Tintin", "Adventures of Tintin, The",
    "adventures_of_tintin". Films of one title are taken for one film, whatever their years.
    """
    words = normalised_title(natural_title(title)).split()
    # Names that were made of file names have their article at the end, without a comma.
    while len(words) > 1 and words[-1] in ("the", "a", "an"):
        words.pop()
    return " ".join(words) or title


@dataclass(frozen=True, slots=True)
class Film:
    """One film of the table; unknown attributes are empty or None.

    `reviews` counts critics, of a hundred of whom `meter` liked the film.
    """

    title: str
    year: int
    director: tuple[str, ...] = ()
    writer: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()
    country: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    runtime: int | None = None
    certificate: str | None = None
    awards: str | None = None
    reviews: int = 0
    genre: tuple[str, ...] = ()
    meter: int | None = None


class FilmTable:
    """Films that can be looked up by title and year."""

    def __init__(self, films: Iterable[Film]) -> None:
        self.films = tuple(films)
        self._by_title: dict[str, list[Film]] = defaultdict(list)
        self._by_part: dict[str, list[Film]] = defaultdict(list)
        for film in self.films:
            self._by_title[normalised_title(film.title)].append(film)
            parts = _title_parts(film.title)
            if len(parts) > 1:
                for part in set(parts):
                    self._by_part[part].append(film)

    @classmethod
    def load(cls, path: Path) -> FilmTable:
        """Reads the SQLite file.

        The table lists a cast in alphabetical order, so its first names say nothing: those who
        appear in most films of the table are kept, the best known first.
        """
        query = (
            "SELECT o.Title, o.Year, o.Director, o.Writer, o.Cast, o.Country, o.Language,"
            " o.Runtime, o.Rating, o.Awards, coalesce(t.Reviews, 0), o.Genre, t.Meter"
            " FROM omdb o LEFT JOIN tomatoes t ON o.ID = t.ID ORDER BY o.ID"
        )
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute(query).fetchall()
        fame = Counter(name for row in rows for name in _names(row[4]))
        credits_written = Counter(name for row in rows for name in _names(row[3]))
        return cls(
            Film(
                title=row[0],
                year=row[1],
                director=_names(row[2]),
                writer=_best_known(_names(row[3]), credits_written, _MAX_WRITERS),
                cast=_best_known(_names(row[4]), fame, _MAX_CAST),
                country=_names(row[5]),
                language=_names(row[6]),
                runtime=int(row[7]) if row[7] else None,
                certificate=row[8] or None,
                awards=row[9] or None,
                reviews=row[10],
                genre=_names(row[11]),
                meter=row[12],
            )
            for row in rows
            if row[0] and row[1]
        )

    def find(self, title: str, year: int | None) -> Film | None:
        """The film of this title from the year or one beside it, or None.

        The whole title counts first (either of "English title (original title)"); then a part
        before or after a colon, if exactly one film fits: "Return of the Jedi" finds "Star Wars:
        Episode VI – Return of the Jedi". Of several films of one title the nearest year wins, then
        the one with most reviews.
        """
        if year is None:
            return None
        titles = _title_variants(title)
        whole = [film for name in titles for film in self._by_title[normalised_title(name)]]
        near = [film for film in whole if abs(film.year - year) <= _YEAR_TOLERANCE]
        if near:
            return min(near, key=lambda film: (abs(film.year - year), -film.reviews))
        extended = [film for name in titles for film in self._by_part[normalised_title(name)]]
        for films in (extended, self._same_subtitle(titles)):
            near = [film for film in films if abs(film.year - year) <= _YEAR_TOLERANCE]
            if near:
                return near[0] if len({id(film) for film in near}) == 1 else None
        return None

    def _same_subtitle(self, titles: Iterable[str]) -> Iterator[Film]:
        for parts in map(_title_parts, titles):
            if len(parts) < 2:
                continue
            series, subtitle = parts[0], parts[-1]
            for film in (*self._by_title[subtitle], *self._by_part[subtitle]):
                theirs = _title_parts(film.title)[0]
                same = difflib.SequenceMatcher(None, series, theirs).ratio() >= _SAME_SERIES
                if " " in subtitle or same:  # several words say more than one
                    yield film


def _title_variants(title: str) -> list[str]:
    """The titles inside "Title, The (Original Title)", each with its article in front."""
    bracketed = _PARENTHESES.match(title.strip())
    names = [bracketed[1], bracketed[2]] if bracketed else [title]
    names = [re.sub(r"^(a\.?k\.?a\.?)\s+", "", name, flags=re.IGNORECASE) for name in names]
    return [natural_title(name) for name in names]


def _title_parts(title: str) -> list[str]:
    parts = [normalised_title(part) for part in _SUBTITLE.split(title)]
    return [part for part in parts if part]


def _names(text: str | None) -> tuple[str, ...]:
    """Splits "A, B" into distinct names, in their order."""
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def _best_known(names: tuple[str, ...], fame: Counter[str], count: int) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (-fame[name], name))[:count])
