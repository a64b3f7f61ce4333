"""What a model is asked about candidates that it was not tuned to score."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from m6rec_jax.errors import ConfigError
from m6rec_jax.text.counted_sentences import CountedSentence
from m6rec_jax.text.outcomes import Contrast

Question = Contrast | CountedSentence


def question(contrast: Sequence[str], sentence: str, counted: Collection[str]) -> Question | None:
    """The question that gin asks; None: it asks for none of its own.

    Args:
      contrast: two outcomes in words, the better one first.
      sentence, counted: of `CountedSentence.parse`.

    Raises:
      ConfigError: both are given, or one that cannot be asked.
    """
    if contrast and sentence:
        raise ConfigError(
            f"contrast = {tuple(contrast)!r} and sentence = {sentence!r} are two questions; name "
            "one of them"
        )
    if sentence:
        return CountedSentence.parse(sentence, counted)
    return Contrast.of(contrast) if contrast else None
