"""A text that comes token by token, and what of it may be shown already."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from m6rec_jax.engine.decoding.generation import GeneratedText, PreparedText
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

# What bytes that are no character yet decode to.
_INCOMPLETE = "\ufffd"


def detokenized(
    vocabulary: Vocabulary, tokens: Sequence[int], num_given: int, stop: Sequence[str] = ()
) -> tuple[str, int, bool]:
    """The text of tokens, as `Generator` gives it, up to the first stop text; how many of its
    characters no further token changes; and whether it ended at a stop text.

    Not stable are, at the end: bytes of which more may make a character; whitespace, which is cut
    off where nothing follows; and what a stop text may begin with.

    Args:
      vocabulary: of the model.
      tokens: the prefix's, then those that were generated.
      num_given: how many are the prefix's.
      stop: texts that end it, none of them empty.
    """
    decoded = vocabulary.decode(tokens[num_given:])
    places = [place for place in map(decoded.find, stop) if place >= 0]
    text = decoded[: min(places, default=len(decoded))]
    text = text.strip() if num_given else text
    if places:
        return text, len(text), True
    left = decoded.lstrip() if num_given else decoded
    complete = left.rstrip(_INCOMPLETE)
    stable = len(complete)
    for word in stop:
        longest = min(len(word) - 1, len(complete))
        begun = (k for k in range(longest, 0, -1) if complete.endswith(word[:k]))
        stable = min(stable, len(complete) - next(begun, 0))
    while stable and (left[stable - 1].isspace() or left[stable - 1] == _INCOMPLETE):
        stable -= 1
    return text, stable, False


class GenerationStream:
    """A text as it comes. For one reader; any thread may cancel.

    Its pieces together are the text of `result()`. Each ends at a character.

    Args:
      vocabulary: of the model.
      prepared: what is written.
      limit: most tokens, the prefix's included.

    Attributes:
      finish_reason: None while it grows, then 'stop' (`[EOS]` or a stop text), 'length',
        'cancelled' or 'error'.
    """

    def __init__(self, vocabulary: Vocabulary, prepared: PreparedText, limit: int) -> None:
        self._vocabulary, self.prepared, self.limit = vocabulary, prepared, limit
        self.finish_reason: str | None = None
        self.is_cancelled = False
        self._pieces = collections.deque[str]()
        self._tokens: list[int] = []
        self._num_shown = 0  # characters
        self._log_probability = 0.0
        self._result: GeneratedText | None = None
        self._error: Exception | None = None

    def take(self) -> list[str]:
        """Pieces that came since."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def result(self) -> GeneratedText:
        """The text once it has ended (`finish_reason`), as far as it came where it was cancelled.

        Raises:
          Exception: whatever went wrong.
        """
        if self._error is not None:
            raise self._error
        assert self._result is not None, "the text has not ended"
        return self._result

    def cancel(self) -> None:
        """Nobody waits any more: the next step frees its slot, or its place in the queue."""
        self.is_cancelled = True

    # For the generator.

    def add(self, tokens: Sequence[int], gained: Sequence[float]) -> None:
        """Takes tokens with their log probabilities until the text ends; shows what is stable."""
        # A stop text ends it within a step.
        size = 1 if self.prepared.request.stop else len(tokens)
        room = self.limit - len(self._tokens)
        number = (tokens.index(EOS_ID) + 1) if EOS_ID in tokens[:room] else room
        for start in range(0, min(number, len(tokens)), size):
            end = min(start + size, number)
            self._tokens += tokens[start:end]
            self._log_probability += sum(gained[start:end])
            text, num_stable, has_stopped = self._detokenized()
            if self._tokens[-1] == EOS_ID or has_stopped:
                return self.finish("stop")
            self._show(text[:num_stable])
        if len(self._tokens) >= self.limit:
            self.finish("length")

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Shows the rest and ends the text."""
        (text, *_), tokens = self._detokenized(), tuple(self._tokens)
        self._show(text)
        ended = reason == "stop"
        self._result = GeneratedText(text, self._log_probability, ended, None, tokens)
        self._error = error
        self.finish_reason = reason  # last: it says that the others are there

    def _detokenized(self) -> tuple[str, int, bool]:
        request, given = self.prepared.request, len(self.prepared.given)
        return detokenized(self._vocabulary, self._tokens, given, request.stop)

    def _show(self, text: str) -> None:
        if len(text) > self._num_shown:
            self._pieces.append(text[self._num_shown :])
            self._num_shown = len(text)
