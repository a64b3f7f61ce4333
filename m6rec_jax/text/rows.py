"""Text to rows: the one preprocessor that training and serving share.

Each function tokenises text with a `Vocabulary` and lays the ids out as `m6rec_jax.text.layout`
describes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m6rec_jax.errors import DataError
from m6rec_jax.text import layout
from m6rec_jax.text.infilling import text_infilling_row
from m6rec_jax.text.layout import FEATURES, Row, pad_batch
from m6rec_jax.text.vocabulary import Vocabulary

__all__ = [
    "FEATURES",
    "Row",
    "drop_words",
    "generation_row",
    "packed_candidates",
    "pad_batch",
    "source_row",
    "text_infilling_row",
]


def source_row(
    vocab: Vocabulary,
    segments: Sequence[str],
    source_length: int,
) -> Row:
    """Tokenises and lays out the encoder's side; see `layout.source_layout`.

    Args:
      vocab: the vocabulary.
      segments: profile, behaviours (oldest first), context; what `history_segments` returns.
      source_length: as there.
    """
    tokens = [vocab.encode_array(segment) for segment in segments]
    return layout.source_layout(vocab.special_ids, tokens, source_length)


def packed_candidates(
    vocab: Vocabulary,
    candidates: Sequence[str],
    target_length: int,
    labels: Sequence[int] | np.ndarray | None = None,
    item_ids: Sequence[int] | np.ndarray | None = None,
    item_log_frequency: Sequence[float] | np.ndarray | None = None,
    *,
    candidate_length: int | None = None,
) -> Row:
    """Tokenises and packs candidates into one decoder row; see `layout.candidates_layout`.

    Raises:
      DataError: also for a candidate without text.
    """
    tokens = [vocab.encode_array(text) for text in candidates]
    for place, ids in enumerate(tokens):
        if len(ids) == 0:
            raise DataError(f"candidate {place} has no text to score: {candidates[place]!r}")
    return layout.candidates_layout(
        vocab.special_ids,
        tokens,
        target_length,
        labels,
        item_ids,
        item_log_frequency,
        candidate_length=candidate_length,
    )


def generation_row(
    vocab: Vocabulary,
    source_segments: Sequence[str],
    target_text: str,
    source_length: int,
    target_length: int,
    *,
    prefix: str = "",
    text_index: int = -1,
) -> Row:
    """Lays out "continue this": a text generated from the source after a prefix.

    Prefix and text are tokenised each by itself, as `engine.generation` does.

    Args:
      vocab: the vocabulary.
      source_segments: as for `source_row`; may be empty.
      target_text: what to generate after the prefix.
      source_length, target_length: the most tokens of source and target, at least 3.
      prefix, text_index: see `layout.generation_layout`.

    Raises:
      DataError: the target has no text.
      ConfigError: a length is too short.
    """
    source = source_row(vocab, source_segments, source_length)
    given, ids = vocab.encode_array(prefix), vocab.encode_array(target_text)
    return source | layout.generation_layout(
        vocab.special_ids, given, ids, target_length, text_index=text_index
    )


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """A text without a random `share` of its words, but with at least one of them.

    With a part of the words gone, the model cannot learn items by heart, by one word of their
    titles, and has something to say of items it was not trained on: words are treated as DropoutNet
    (Volkovs et al., NeurIPS 2017) treats features. Draws one number a word.
    """
    words = text.split()
    if not words:
        return text
    draws = rng.random(len(words))
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= share]
    return " ".join(kept) if kept else words[int(np.argmax(draws))]
