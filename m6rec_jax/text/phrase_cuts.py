"""Cuts texts where no vocabulary piece may reach across, and counts equal cuts.

Cutting first keeps pieces meaningful: left to itself SentencePiece merges across everything that
is frequent (", action, 5", with the 5 torn off a 55), which is most of a template's text. And equal
cuts are counted instead of stored, so memory grows with the number of different phrases and not
with the number of texts.
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
from collections.abc import Sequence

import sentencepiece

NORMALIZATION = "nmt_nfkc"  # NFKC and whitespace folding; keeps case
SPACE = "\u2581"  # how SentencePiece writes a space

# SentencePiece silently skips sentences that hold its own mark for rare characters (U+2585) or
# NUL, and cannot read lone surrogates.
_UNREADABLE = re.compile("[\ud800-\udfff\x00\u2585]")
# It skips sentences longer than its limit, too.
MAX_CUT_CHARS = 1000
_MAX_CUTS = 4_000_000
_KEPT_TEXTS = 100_000

# A full stop after fewer than three letters ("Mr.", "L.A.") ends no phrase.
_BEFORE_PUNCTUATION = re.compile(
    r"(?=(?:[,;:!?\"\u201d]+|(?<=\w{3})\.|(?<=[^\w ])\.|(?<=\d)\.)(?= |$))"
)
_WORD = re.compile(r" ?[^ ]+")


class PhraseCuts:
    """Counts the phrases of the texts it is given.

    Phrases end before punctuation, which begins the next one (", comedy"), and around the words of
    `keep_apart`. A phrase that starts a word carries the space before it.

    Attributes:
      counts: how often each cut was seen.
      num_texts: texts added.
      num_empty: texts without anything in them.
      num_sanitised: texts in which a lone surrogate, NUL or U+2585 became U+FFFD.
      num_long: how often a stretch was cut only because SentencePiece would have skipped it.
      num_forgotten: distinct cuts dropped as the rarest, because there were too many to hold.
    """

    def __init__(self, keep_apart: Sequence[str] = (), *, words: bool) -> None:
        """`keep_apart` are always cut out; `words`: phrases are cut further, into words."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.num_texts = self.num_empty = self.num_sanitised = 0
        self.num_long = self.num_forgotten = 0
        self._words = words
        # The text must be cut as the finished model will see it.
        self._normalizer = sentencepiece.SentencePieceNormalizer(
            rule_name=NORMALIZATION,
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=True,
        )
        apart = {" ".join(self._normalizer.normalize(phrase).split()) for phrase in keep_apart}
        longest_first = sorted(filter(None, apart), key=len, reverse=True)
        alone = [f" {re.escape(phrase)}(?!\\w)" for phrase in longest_first]
        # "(?!)" matches nothing.
        self._alone = re.compile(f"({'|'.join(alone) or '(?!)'})")
        # Behaviours stand in the history of many rows.
        self._cuts = functools.lru_cache(_KEPT_TEXTS)(self._cuts_of)

    def add(self, text: str, *, words: bool = False) -> None:
        """Counts the cuts of one text; with `words`, each of its words by itself."""
        self.num_texts += 1
        words = words or self._words
        # Prose does not repeat.
        cuts, replaced = self._cuts_of(text) if words else self._cuts(text)
        self.num_sanitised += replaced
        self.num_empty += not cuts
        for cut in itertools.chain.from_iterable(map(words_of, cuts)) if words else cuts:
            self._count(cut)
        if len(self.counts) > _MAX_CUTS:
            before = len(self.counts)
            keep_most_common(self.counts, _MAX_CUTS // 2)
            self.num_forgotten += before - len(self.counts)

    def _cuts_of(self, text: str) -> tuple[list[str], bool]:
        """The cuts of a text as it comes, none of an empty one; and whether it was sanitised."""
        text, replaced = _UNREADABLE.subn("\ufffd", text)
        found = self._normalizer.normalize(text.replace(SPACE, " ")).split()
        return self.split(" ".join(found)) if found else [], bool(replaced)

    def split(self, text: str) -> list[str]:
        """Cuts a normalised text; the cuts joined give " " + text."""
        # Even places hold what lies between the words that stand alone.
        parts = [
            cut
            for place, part in enumerate(self._alone.split(" " + text))
            for cut in (_BEFORE_PUNCTUATION.split(part) if place % 2 == 0 else [part])
        ]
        return [part for part in parts if part]

    def _count(self, cut: str) -> None:
        while len(cut) > MAX_CUT_CHARS:
            # At a space where there is one, so that words stay whole.
            end = cut.rfind(" ", 1, MAX_CUT_CHARS)
            end = end if end > 0 else MAX_CUT_CHARS
            self.counts[cut[:end]] += 1
            self.num_long += 1
            cut = cut[end:]
        self.counts[cut] += 1


def words_of(cut: str) -> list[str]:
    """Splits a cut into words that keep the space before them."""
    return _WORD.findall(cut)


def keep_most_common(counts: collections.Counter[str], limit: int) -> None:
    """Drops the rarest entries in place, down to `limit`; ties go by the text itself."""
    kept = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:limit]
    counts.clear()
    counts.update(dict(kept))
