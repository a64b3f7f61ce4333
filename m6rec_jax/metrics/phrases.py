"""Words of a text, and finding the phrases of a dictionary among them.

A text becomes *words*: runs of letters, digits, underscores and the marks that belong to them (the
vowel signs of Hindi, say), after Unicode's compatibility normalisation (NFKC). Full stops, hyphens
and apostrophes only separate words, so that "Samuel L Jackson" finds "Samuel L. Jackson" and "film
noir" finds "Film-Noir". Any other sign is a piece of its own when phrases are matched: "Los,
Angeles" is not "Los Angeles". Matches are whole words by construction: "war" is not in "warm".

Writing without spaces between words (Chinese, Japanese, Thai) is one word up to the next sign, and
phrases inside such a run are not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

# Signs that separate words without keeping a phrase from going on.
_SEPARATORS = frozenset(".'’‘ʼ`-‐‑‒–—")
_ASCII_PIECE = re.compile(r"\w+|[^\w\s.'`-]")


def fold(text: str) -> str:
    """The text without differences of case and of compatibility forms (NFKC, case folding)."""
    # Folding can bring decomposed letters forth, hence the second normalisation.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def pieces(text: str) -> list[str]:
    """Words and signs of a text, in order and case as they are; separators and spaces are gone."""
    text = unicodedata.normalize("NFKC", text)
    if text.isascii():
        return _ASCII_PIECE.findall(text)
    return list(_unicode_pieces(text))


def _unicode_pieces(text: str) -> Iterator[str]:
    word = ""
    for sign in text:
        category = unicodedata.category(sign)
        if category == "Cf":  # joiners and direction marks are not part of what is written
            continue
        if sign.isalnum() or sign == "_" or (word and category.startswith("M")):
            word += sign
            continue
        if word:
            yield word
        word = ""
        # A mark without a letter before it belongs to a sign (the variation selectors of emoji).
        if not (sign.isspace() or sign in _SEPARATORS or category.startswith("M")):
            yield sign
    if word:
        yield word


def words(text: str) -> list[str]:
    """The words of a text, folded, without any signs."""
    return [piece for piece in pieces(fold(text)) if _is_word(piece)]


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Runs of n of what stands between spaces."""
    tokens = text.split()
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def _is_word(piece: str) -> bool:
    return piece[0].isalnum() or piece[0] == "_"


class PhraseFinder:
    """Finds the phrases of a dictionary in texts, by whole words and without regard to case.

    A text of w words costs at most w × (words of the longest phrase) look-ups.

    Args:
      keys: the phrases, split and folded (`phrase_key`).
    """

    def __init__(self, keys: Iterable[tuple[str, ...]]) -> None:
        self._phrases = {key for key in keys if key}
        # First word -> lengths of the phrases that begin with it, longest first.
        lengths: dict[str, set[int]] = {}
        for key in self._phrases:
            lengths.setdefault(key[0], set()).add(len(key))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def at(self, folded: list[str], start: int) -> Iterator[tuple[str, ...]]:
        """The phrases that begin at one place of a text's folded pieces, longest first."""
        for length in self._lengths.get(folded[start], ()):
            key = tuple(folded[start : start + length])
            # A slice at the end of the text may be shorter; it is then another length's business.
            if len(key) == length and key in self._phrases:
                yield key

    def all_in(self, text: str) -> frozenset[tuple[str, ...]]:
        """All phrases in a text; a phrase inside a longer one counts too."""
        folded = list(phrase_key(text))
        return frozenset(key for start in range(len(folded)) for key in self.at(folded, start))


def phrase_key(phrase: str) -> tuple[str, ...]:
    """Folded pieces of a phrase, equal for all its spellings; () when it has no word.

    Pieces are folded one by one, after the split, so that places in a text's pieces and in its
    folded pieces are the same.
    """
    key = tuple(fold(piece) for piece in pieces(phrase))
    return key if any(_is_word(piece) for piece in key) else ()
