"""Text infilling: spans of a text are masked, to be restored (paper, section 1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.layout import (
    Row,
    check_source_length,
    decoder_features,
    encoder_features,
    fit_to_budget,
)
from m6rec_jax.text.vocabulary import Vocabulary

# Share of the tokens to mask, and tokens of a span on average.
NOISE_DENSITY, MEAN_SPAN_LENGTH = 0.15, 3.0


def text_infilling_row(
    vocab: Vocabulary,
    segments: Sequence[np.ndarray],
    source_length: int,
    target_length: int,
    rng: np.random.Generator,
) -> Row:
    """Masks short spans, to be restored one after the other (paper, section 1: text infilling).

    As in T5, a span becomes one sentinel in the source, and the target is every sentinel followed
    by the tokens it stands for:

        source  [BOS'] liked <extra_id_0> , 3 <extra_id_1> ago [EOS']
        target  <extra_id_0> Fargo (1996) <extra_id_1> days

    A text too long for either side is shortened first: of one segment a random run of tokens is
    taken, of several whole oldest behaviours are dropped (`fit_to_budget`). A span may reach over
    the end of a segment; the sentinel stands where it begins.

    The vocabulary's sentinels bound the number of spans; source and target have at least 3 and 4
    tokens.

    Returns:
      The features of `source_row` (num_dropped counts segments) and of `packed_candidates`.

    Raises:
      DataError: there are no tokens.
      ConfigError: a length out of range, or no sentinels.
    """
    check_source_length(source_length)
    if target_length < 4:
        raise ConfigError(
            f"target_length {target_length} has no room for [BOS], a sentinel, a token and [EOS]; "
            "it must be at least 4"
        )
    if not any(map(len, segments)):
        raise DataError("there is no text to mask spans of")
    most = len(vocab.sentinel_ids)
    room = longest_text(source_length - 2, target_length - 2, most)
    kept, num_dropped = fit_to_budget(segments, room)
    if len(segments) == 1 or not any(map(len, kept)):
        # A long text, or a behaviour that alone is longer than the row: any run of tokens will do.
        ids = next(ids for ids in reversed(segments) if len(ids))
        start = int(rng.integers(max(len(ids) - room, 0) + 1))
        kept, num_dropped = [ids[start : start + room]], len(segments) - 1

    text = np.concatenate(kept)
    masked, starts = draw_spans(len(text), *span_counts(len(text), most), rng)
    sentinels = np.array(vocab.sentinel_ids[: np.count_nonzero(starts)], np.int32)
    source = text.copy()
    source[starts] = sentinels
    left = ~masked | starts
    # What is left of each segment; one that a span swallowed is empty and gets no block.
    bounds = np.cumsum([len(segment) for segment in kept])[:-1]
    split = zip(np.split(source, bounds), np.split(left, bounds), strict=True)
    blocks = [tokens[keep] for tokens, keep in split]
    target = np.insert(text[masked], np.flatnonzero(starts[masked]), sentinels)
    row = encoder_features(vocab.special_ids, blocks)
    row |= decoder_features(vocab.special_ids, [target])[0]
    return row | {
        "num_dropped": np.array([num_dropped], np.int32),
        "num_truncated": np.zeros(1, np.int32),
    }


def span_counts(length: int, max_spans: int) -> tuple[int, int]:
    """How many tokens of a text are masked, and in how many spans: (num_masked, num_spans).

    At least one token is masked and, if there are two, at least one is not.
    """
    num_masked = min(max(round(length * NOISE_DENSITY), 1), max(length - 1, 1))
    num_spans = max(round(num_masked / MEAN_SPAN_LENGTH), 1)
    # Spans must not touch, so there is an unmasked token between any two.
    return num_masked, min(num_spans, num_masked, length - num_masked + 1, max_spans)


@functools.lru_cache(maxsize=256)
def longest_text(source_room: int, target_room: int, max_spans: int) -> int:
    """The most tokens of a text for which both sides fit, 0 when not even one does.

    The source holds what is left of the text, the target what is masked, both a sentinel per span.
    """
    for length in range(source_room + target_room, 0, -1):
        masked, spans = span_counts(length, max_spans)
        if length - masked + spans <= source_room and masked + spans <= target_room:
            return length
    return 0


def draw_spans(
    length: int, num_masked: int, num_spans: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws which tokens are masked; every arrangement of that many spans is equally likely.

    Returns:
      (masked, starts): bool [length] each; `starts` marks the first token of every span. No two
        spans touch.
    """
    span_lengths = _composition(num_masked, num_spans, rng)
    # The text may begin or end with a span, so the outer two gaps may be empty.
    gaps = _composition(length - num_masked + 2, num_spans + 1, rng)
    gaps[[0, -1]] -= 1
    first = np.cumsum(gaps[:-1]) + np.cumsum(span_lengths) - span_lengths
    starts = np.zeros(length, bool)
    starts[first] = True
    runs = np.ravel(np.column_stack([gaps[:-1], span_lengths]))
    masked = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.append(masked, np.zeros(gaps[-1], bool)), starts


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `parts` numbers of at least 1 that add up to `total`: int64 [parts]."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)
