"""What `generation.Generator` gives back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from m6rec_jax.engine.token_trie import NO_ENTRY
from m6rec_jax.text.vocabulary import Vocabulary


class GeneratedText(NamedTuple):
    """A text that the model wrote.

    Attributes:
      text: with its prefix.
      score: what texts are ordered by: of beam search the log probability normalised by the length
        (`beam_search`), else the log probability.
      log_probability: of what was written after the prefix.
      ended: False where the text was cut off at the longest length.
      entry: which title of the trie it is, where there was one.
      written: the text without its prefix.
    """

    text: str
    score: float
    log_probability: float
    ended: bool
    entry: int | None = None
    written: str = ""


class RecommendedTitle(NamedTuple):
    """A title of the catalogue.

    Attributes:
      title: as the catalogue has it.
      score: log probability of the title, normalised by its length where there is a length penalty.
      places: of all items that have the title and were not seen, best first.
    """

    title: str
    score: float
    places: list[int]


class WrittenTexts(NamedTuple):
    """Results of one request, `[texts, ...]` each, best first where that has a meaning.

    Attributes:
      tokens, scores, log_probability, ended, entries: see `writing.WrittenBatch`.
      num_given: how many tokens each text begins with.
    """

    tokens: np.ndarray
    scores: np.ndarray
    log_probability: np.ndarray
    ended: np.ndarray
    entries: np.ndarray
    num_given: int

    def texts(self, vocabulary: Vocabulary, of_trie: bool) -> list[GeneratedText]:
        """The texts, without beams for which there was none."""
        return [
            self._text(i, vocabulary, of_trie)
            for i in range(len(self.scores))
            if not np.isneginf(self.scores[i])
        ]

    def _text(self, i: int, vocabulary: Vocabulary, of_trie: bool) -> GeneratedText:
        text = vocabulary.decode(self.tokens[i])
        after = text
        if self.num_given:
            after = vocabulary.decode(self.tokens[i, self.num_given :]).strip()
        return GeneratedText(
            text,
            float(self.scores[i]),
            float(self.log_probability[i]),
            bool(self.ended[i]),
            int(self.entries[i]) if of_trie and self.entries[i] != NO_ENTRY else None,
            after,
        )
