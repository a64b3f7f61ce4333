"""Corrects titles that a user misspells, before a turn is read by exact phrases."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rapidfuzz import fuzz

from m6rec_jax.dialogue.english import COMMON
from m6rec_jax.dialogue.phrases import Token
from m6rec_jax.metrics.phrases import words
from m6rec_jax.text.title_search import SURE, TitleSearch

# What stands around titles: "I liked ...", "... was great", "... or ...".
_AROUND = re.compile(
    r"""([,.;!?"“”]|\b(?:i|(?:re)?watch(?:ed)?|saw|seen?|(?:dis)?liked?|loved?|hated?|enjoyed|"""
    r"than|was|were|is|but|because|already|again|yesterday|please)\b)",
    re.IGNORECASE,
)


class MisspeltTitles:
    """Finds what is as likely a title as what is typed into a search, and no title as it stands.

    Args:
      names: by which items are named.
      tokens: reads a text as phrases that are known, `KnownPhrases.tokens`.
    """

    def __init__(self, names: Sequence[str], tokens: Callable[[str], Sequence[Token]]) -> None:
        self._names, self._search, self._tokens = names, TitleSearch(names), tokens

    def corrected(self, text: str) -> str:
        """A turn, with titles as the catalogue has them."""
        titles = "\n".join(" ".join(t.words) for t in self._tokens(text) if t.kind == "title")
        clauses = _AROUND.split(text)
        for number in range(0, len(clauses), 2):
            begins = not number or clauses[number - 1] in ".;!?"
            whole = self._title(clauses[number], titles, begins)
            joined = re.split(r"(\b(?:and|or)\b)", clauses[number])
            clauses[number] = whole or "".join(
                self._title(part, titles, begins and not place) or part
                for place, part in enumerate(joined)
            )
        return "".join(clauses)

    def _title(self, text: str, titles: str, begins: bool) -> str | None:
        """The title that a part of a turn means, but for those that the turn has; None: none."""
        content = [word for word in words(text) if word not in COMMON]
        kinds = {token.kind for token in self._tokens(text) if token.words[0] not in COMMON}
        if "title" in kinds or "word" not in kinds or " ".join(words(text)) in titles:
            return None
        for place in self._search.find(text, 1, SURE):
            name = self._names[place]
            # One word is part of many titles. It needs a capital that is no sentence's.
            whole = fuzz.ratio(text.strip().casefold(), name.casefold()) >= 100 * SURE
            if len(content) > 1 or (whole and not begins and not text.islower()):
                return f" {name} "
        return None
