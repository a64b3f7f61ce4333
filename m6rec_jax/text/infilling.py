"""Which spans of a text are masked for text infilling (paper, section 1: pretraining, part i)."""

from __future__ import annotations

import functools

import numpy as np


def span_counts(
    length: int, noise_density: float, mean_span_length: float, max_spans: int
) -> tuple[int, int]:
    """Says how many tokens of a text are masked, and in how many spans.

    Args:
      length: tokens of the text, at least 1.
      noise_density: share of the tokens to mask, between 0 and 1. At least one token is masked and,
        where there are two, at least one is not.
      mean_span_length: tokens per span, on average.
      max_spans: the most spans, at least 1: there are only so many sentinels.

    Returns:
      (num_masked, num_spans).
    """
    num_masked = min(max(round(length * noise_density), 1), max(length - 1, 1))
    num_spans = max(round(num_masked / mean_span_length), 1)
    # Spans must not touch, so there is an unmasked token between any two.
    return num_masked, min(num_spans, num_masked, length - num_masked + 1, max_spans)


@functools.lru_cache(maxsize=256)
def longest_text(
    source_room: int,
    target_room: int,
    noise_density: float,
    mean_span_length: float,
    max_spans: int,
) -> int:
    """Says how long a text may be for both sides of its infilling task to fit.

    Args:
      source_room: tokens for what is left of the text and one sentinel per span.
      target_room: tokens for the masked ones and one sentinel per span.
      noise_density, mean_span_length, max_spans: as for `span_counts`.

    Returns:
      The most tokens, 0 when not even one fits.
    """
    length = source_room + target_room
    while length > 0:
        masked, spans = span_counts(length, noise_density, mean_span_length, max_spans)
        if length - masked + spans <= source_room and masked + spans <= target_room:
            break
        length -= 1
    return length


def draw_spans(
    length: int, num_masked: int, num_spans: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws which tokens are masked; every arrangement of that many spans is equally likely.

    Args:
      length: tokens of the text.
      num_masked: how many to mask.
      num_spans: in how many spans; no two spans touch.
      rng: where the draw comes from.

    Returns:
      (masked, starts): bool [length] each; `starts` marks the first token of every span.
    """
    span_lengths = _composition(num_masked, num_spans, rng)
    # The text may begin or end with a span, so the outer two gaps may be empty.
    gaps = _composition(length - num_masked + 2, num_spans + 1, rng)
    gaps[0] -= 1
    gaps[-1] -= 1
    first = np.cumsum(gaps[:-1]) + np.cumsum(span_lengths) - span_lengths
    starts = np.zeros(length, bool)
    starts[first] = True
    change = np.zeros(length + 1, np.int64)
    change[first] += 1
    change[first + span_lengths] -= 1
    return np.cumsum(change[:-1]) > 0, starts


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `parts` numbers of at least 1 that add up to `total`: int64 [parts]."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)
