"""Cuts long texts into passages of whole sentences, short enough for one row."""

from __future__ import annotations

import re

# A full stop, question or exclamation mark and what closes after it, before a capital, a digit or
# an opening sign. Abbreviations ("Dr. No") are cut as well; a passage then ends there, no more.
_SENTENCE_END = re.compile(r"((?<=[.!?])(?<!\b[A-Z]\.)[\"'”’)\]]*)\s+(?=[\"'“‘(\[]*[A-Z0-9])")


def passages(text: str, max_words: int) -> list[str]:
    """Groups whole sentences into passages of at most `max_words` words, without losing a word.

    A longer sentence is cut after every `max_words` words.
    """
    grouped: list[list[str]] = [[]]
    for sentence in _SENTENCE_END.sub(r"\1\n", " ".join(text.split())).split("\n"):
        words = sentence.split()
        if len(grouped[-1]) + len(words) > max_words:
            grouped.append([])
        while len(words) > max_words:
            grouped[-1:] = [words[:max_words], []]
            words = words[max_words:]
        grouped[-1] += words
    return [" ".join(words) for words in grouped if words]
