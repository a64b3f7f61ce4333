"""Cuts long texts into passages of whole sentences, short enough for one row."""

from __future__ import annotations

import itertools
import re

from m6rec_jax.errors import ConfigError

# A full stop, question or exclamation mark and what closes after it, before a capital, a digit or
# an opening sign. Abbreviations ("Dr. No") are cut as well; a passage then ends there, no more.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")


def sentences(text: str) -> list[str]:
    """Splits a text after each sentence; whitespace becomes single spaces."""
    text = " ".join(text.split())
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    cut = (text[start:end].rstrip() for start, end in itertools.pairwise([0, *ends, len(text)]))
    return [sentence for sentence in cut if sentence]


def passages(text: str, max_words: int) -> list[str]:
    """Groups whole sentences into passages of at most `max_words` words, without losing a word.

    A longer sentence is cut after every `max_words` words. Raises ConfigError for `max_words` below
    1.
    """
    if max_words < 1:
        raise ConfigError(f"a passage needs at least one word, not max_words = {max_words}")
    grouped: list[list[str]] = [[]]
    for sentence in sentences(text):
        words = sentence.split()
        if len(grouped[-1]) + len(words) > max_words:
            grouped.append([])
        while len(words) > max_words:
            grouped[-1:] = [words[:max_words], []]
            words = words[max_words:]
        grouped[-1] += words
    return [" ".join(words) for words in grouped if words]
