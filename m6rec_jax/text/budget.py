"""The length budget: which behaviours of a long history the model gets to see.

The first segment (the profile) and the last (the context) stay; of the behaviours in between, whole
oldest ones are dropped until the rest fits. A behaviour is never cut in half: half a title is worse
than none, and a cut segment would miss the cache of encoded segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, cast

from m6rec_jax.errors import ConfigError


class _Sliceable(Protocol):
    """A list or an array of token ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> _Sliceable: ...


Tokens = TypeVar("Tokens", bound=_Sliceable)


def fit_to_budget(
    segments: Sequence[Tokens], budget: int, keep_first: int = 1, keep_last: int = 1
) -> tuple[list[Tokens], int]:
    """Drops whole oldest segments until the rest fits; shortens the kept ones only if they must.

    The behaviours that stay are always the newest ones, without a gap. When the protected segments
    alone are too long, all behaviours go and the longest protected segments are cut at their end,
    down to a common length, until they fit. The same input always gives the same output.

    Args:
      segments: token ids of each segment, oldest first; slicing a segment must give its own type.
      budget: how many tokens the kept segments may have together.
      keep_first: how many segments at the start are never dropped.
      keep_last: how many segments at the end are never dropped.

    Returns:
      (kept, num_dropped): the kept segments in their order, and how many were dropped.

    Raises:
      ConfigError: budget, keep_first or keep_last is negative.
    """
    if budget < 0 or keep_first < 0 or keep_last < 0:
        raise ConfigError(
            "fit_to_budget needs budget, keep_first and keep_last of at least 0, "
            f"got {budget}, {keep_first} and {keep_last}"
        )
    lengths = [len(segment) for segment in segments]
    total = sum(lengths)
    if total <= budget:
        return list(segments), 0
    middle_start = min(keep_first, len(segments))
    middle_end = max(middle_start, len(segments) - keep_last)
    oldest = middle_start
    while oldest < middle_end and total > budget:
        total -= lengths[oldest]
        oldest += 1
    kept = [*segments[:middle_start], *segments[oldest:]]
    if total > budget:
        limits = _common_limits([len(segment) for segment in kept], budget)
        kept = [
            segment if len(segment) <= limit else cast(Tokens, segment[:limit])
            for segment, limit in zip(kept, limits, strict=True)
        ]
    return kept, oldest - middle_start


def _common_limits(lengths: Sequence[int], budget: int) -> list[int]:
    """Shares `budget` so that short segments stay whole and long ones end up equally long.

    Earlier segments get the tokens that an even division leaves over.
    """
    limits = [0] * len(lengths)
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for position, index in enumerate(by_length):
        share = budget // (len(lengths) - position)
        if lengths[index] > share:
            too_long = sorted(by_length[position:])
            for place, other in enumerate(too_long):
                extra = place < budget - share * len(too_long)
                limits[other] = share + extra
            break
        limits[index] = lengths[index]
        budget -= lengths[index]
    return limits
