"""Titles as people write them: with typing errors, without article, subtitle or year.

    TitleSearch(["Star Wars: Episode IV – A New Hope", "Star Maps"]).find("star wrs")  # [0, 1]

What is written is compared with the whole title, with what stands before and after its colon or
dash (`rapidfuzz`), and word by word, so that some words of a title find it and the beginning of the
last one is enough. "The Matrix" and "Matrix, The" are one title, "Rocky II" and "Rocky 2" are, too.
"""

from __future__ import annotations

import bisect
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from rapidfuzz import fuzz, process

# Titles less alike are no result, and from `SURE` on one is what was meant: one wrong letter of a
# short word is.
_LEAST, SURE = 0.6, 0.8
# Words that are less alike are two words.
_SAME_WORD = 0.75
# All words of a title are more than some, and a word more than its beginning.
_SOME_WORDS, _BEGINNING = 0.9, 0.95
# Another number is another film of a series, not a slip of the pen.
_OTHER_NUMBER = 0.75
_SAME_YEAR, _NEXT_YEAR = 0.1, 0.05
_ROMANS = ("ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_ROMAN = {roman: str(n) for n, roman in enumerate(_ROMANS, start=2)}
_YEAR = re.compile(r"^(.*\S)\W+\(?(1[89]\d\d|20\d\d)\)?\W*$")
_PARTS = re.compile(r":\s| [-–—] ")


class TitleSearch:
    """Finds titles; ready for calls from several threads.

    Args:
      titles: perhaps with a year in brackets at the end.
      years: of each; None: not known, or in the title.
      popularity: of each, such as how often it was watched: of several that fit as well the most
        popular is first. None: the one that stands first is.
    """

    def __init__(
        self,
        titles: Sequence[str],
        years: Sequence[int | None] | None = None,
        popularity: Sequence[float] | None = None,
    ) -> None:
        dated = [_dated(title) for title in titles]
        self._years = np.array([year or 0 for year in years or [y for _, y in dated]], np.int64)
        self._popularity = np.zeros(len(titles)) if popularity is None else np.asarray(popularity)
        plain = [_plain(title) for title, _ in dated]
        self._numbers = list(map(_numbers, plain))
        # Whole titles and their parts, and of which title each is.
        texts = [
            dict.fromkeys([whole, *filter(None, map(_plain, _PARTS.split(title)))])
            for whole, (title, _) in zip(plain, dated, strict=True)
        ]
        self._texts = [text for every in texts for text in every]
        self._owners = np.repeat(np.arange(len(texts)), list(map(len, texts)))
        # Distinct words in order, those of all titles in a row, and where each title's begin.
        words = [whole.split(" ") for whole in plain]
        self._vocabulary = sorted(set().union(*words))
        self._words = np.searchsorted(self._vocabulary, [word for of in words for word in of])
        self._starts = np.cumsum([0, *map(len, words)])[:-1]

    def find(self, query: str, k: int = 10, at_least: float = _LEAST) -> list[int]:
        """Places of the k titles that are likest to what is written, best first.

        Args:
          query: a title, or some of its words, perhaps with a year behind.
          k: how many, at most.
          at_least: how alike they are, from 0 to 1 (equal); `SURE`: one of them is meant.
        """
        if not self._numbers:
            return []
        likeness = self._likeness(_plain(query))
        title, year = _dated(query)
        if year is not None:  # but "Blade Runner 2049"
            apart = np.abs(self._years - year)
            bonus = np.where(apart == 0, _SAME_YEAR, np.where(apart == 1, _NEXT_YEAR, 0.0))
            dated = self._likeness(_plain(title))
            likeness = np.maximum(likeness, dated + np.where(dated >= at_least, bonus, 0.0))
        order = np.lexsort((-self._popularity, -likeness.round(2)))[:k]
        return [int(place) for place in order if likeness[place] >= at_least]

    def _likeness(self, query: str) -> np.ndarray:
        """How like all titles are to a plain text, float64 `[titles]`."""
        likeness = np.zeros(len(self._numbers))
        np.maximum.at(likeness, self._owners, _ratios(query, self._texts, _LEAST))
        words = query.split(" ")
        covered = np.zeros(len(likeness))
        for word in words:
            same = _ratios(word, self._vocabulary, _SAME_WORD)
            if word is words[-1]:
                first = bisect.bisect_left(self._vocabulary, word)
                last = bisect.bisect_left(self._vocabulary, word + chr(sys.maxunicode))
                same[first:last] = np.maximum(same[first:last], _BEGINNING)
            covered += len(word) * np.maximum.reduceat(same[self._words], self._starts)
        likeness = np.maximum(likeness, _SOME_WORDS * covered / max(1, sum(map(len, words))))
        if numbers := _numbers(query):
            likeness[[not numbers <= of_title for of_title in self._numbers]] *= _OTHER_NUMBER
        return likeness


def _ratios(text: str, others: Sequence[str], at_least: float) -> np.ndarray:
    """How like others a text is, `[others]`; 0 below a threshold."""
    return process.cdist([text], others, scorer=fuzz.ratio, score_cutoff=100 * at_least)[0] / 100


def _dated(title: str) -> tuple[str, int | None]:
    """A title without the year at its end, and that year."""
    match = _YEAR.match(title)
    return (match[1], int(match[2])) if match else (title, None)


def _numbers(plain: str) -> frozenset[str]:
    return frozenset(re.findall(r"\d+", plain))


def _plain(title: str) -> str:
    """Lower-case words and numbers, without accents and articles."""
    letters = unicodedata.normalize("NFKD", title)
    text = "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()
    words = re.sub(r"[^\w]+|_", " ", text.replace("&", " and ").replace("'", "")).split()
    names = [word for word in words if word not in ("the", "a", "an")] or words
    return " ".join([_ROMAN.get(word, word) for word in names]) or title.strip()
