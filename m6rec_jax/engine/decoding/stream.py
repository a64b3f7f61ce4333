"""A text that comes piece by piece, and what of it may be shown already."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

from m6rec_jax.engine.decoding.generation import GeneratedText
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

# What bytes that are no character yet decode to.
_INCOMPLETE = "\ufffd"


class Shown(NamedTuple):
    """What tokens say so far.

    Attributes:
      text: with the prefix.
      continuation: without it.
      sure: how much of the continuation no further token changes.
      stopped: whether it ended at a stop text, which is no part of it.
    """

    text: str
    continuation: str
    sure: int
    stopped: bool


def shown(
    vocabulary: Vocabulary, tokens: Sequence[int], num_given: int, stop: Sequence[str] = ()
) -> Shown:
    """The text of tokens, as `Generator` gives it, up to the first stop text.

    Not sure are, at the end: bytes of which more may make a character; whitespace, which is cut off
    where nothing follows; and what a stop text may begin with.

    Args:
      vocabulary: of the model.
      tokens: the prefix's, then those that were generated.
      num_given: how many are the prefix's.
      stop: texts that end it, none of them empty.
    """
    raw = vocabulary.decode(tokens[num_given:])
    found = [place for place in map(raw.find, stop) if place >= 0]
    end = min(found, default=len(raw))
    continuation = raw[:end]
    text = continuation
    if num_given:
        whole = vocabulary.decode(tokens)
        text = whole[: len(whole) - (len(raw) - end)]
        continuation = continuation.strip()
    if found:
        return Shown(text, continuation, len(continuation), True)
    left = raw.lstrip() if num_given else raw
    complete = left.rstrip(_INCOMPLETE)
    sure = len(complete)
    for word in stop:
        longest = min(len(word) - 1, len(complete))
        begun = (k for k in range(longest, 0, -1) if complete.endswith(word[:k]))
        sure = min(sure, len(complete) - next(begun, 0))
    while sure and (left[sure - 1].isspace() or left[sure - 1] == _INCOMPLETE):
        sure -= 1
    return Shown(text, continuation, sure, False)


class GenerationStream:
    """Pieces of a text as they come. For one reader; any thread may cancel.

    The pieces together are `result().continuation`, the whole text where there is no prefix. Each
    ends at a character.

    Attributes:
      num_tokens: generated so far, after the prefix, `[EOS]` included.
      finish_reason: None while it grows, then 'stop' (`[EOS]` or a stop text), 'length',
        'cancelled' or 'error'.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.is_cancelled = False
        self._pieces = collections.deque[str]()
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

    # For who writes the text.

    def put(self, piece: str) -> None:
        """The next piece; an empty one is none."""
        if piece:
            self._pieces.append(piece)

    def finish(
        self, reason: str, result: GeneratedText | None = None, error: Exception | None = None
    ) -> None:
        """No more pieces come."""
        self._result, self._error = result, error
        self.finish_reason = reason  # last: it says that the others are there


class GrowingText:
    """Tokens of one text as they come, put into its stream.

    Args:
      vocabulary, num_given, stop: see `shown`.
      stream: where pieces go.
    """

    def __init__(
        self, vocabulary: Vocabulary, num_given: int, stop: Sequence[str], stream: GenerationStream
    ) -> None:
        self._vocabulary, self._num_given, self._stop = vocabulary, num_given, stop
        self._stream = stream
        self._tokens: list[int] = []
        self._put = 0  # characters
        self._log_probability = 0.0

    def add(self, tokens: Sequence[int], gained: Sequence[float]) -> bool:
        """Puts what is sure into the stream; returns whether the text has ended by itself."""
        size = 1 if self._stop else len(tokens)  # a stop text ends it within a step
        for start in range(0, len(tokens), size):
            new = list(tokens[start : start + size])
            self._tokens += new
            self._log_probability += sum(gained[start : start + size])
            self._stream.num_tokens = max(0, len(self._tokens) - self._num_given)
            if new[-1] == EOS_ID:
                self.finish("stop")
                return True
            now = self._shown()
            if now.stopped:
                self.finish("stop")
                return True
            self._show(now.continuation[: now.sure])
        return False

    def finish(self, reason: str) -> None:
        """Puts the rest into the stream and ends it."""
        now = self._shown()
        self._show(now.continuation)
        self._stream.finish(
            reason,
            GeneratedText(
                now.text,
                self._log_probability,
                self._log_probability,
                reason == "stop",
                None,
                now.continuation,
                tuple(self._tokens),
            ),
        )

    def _shown(self) -> Shown:
        return shown(self._vocabulary, self._tokens, self._num_given, self._stop)

    def _show(self, text: str) -> None:
        self._stream.put(text[self._put :])
        self._put = max(self._put, len(text))
