from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError
from m6rec_jax.text.budget import fit_to_budget


def test_drops_whole_oldest_behaviours() -> None:
    segments = [[1, 1], [2, 2, 2], [3], [4, 4], [5]]
    assert fit_to_budget(segments, 9) == (segments, 0)
    assert fit_to_budget(segments, 8) == ([[1, 1], [3], [4, 4], [5]], 1)
    assert fit_to_budget(segments, 5) == ([[1, 1], [4, 4], [5]], 2)
    assert fit_to_budget(segments, 3) == ([[1, 1], [5]], 3)


def test_a_short_old_behaviour_does_not_outlive_a_longer_newer_one() -> None:
    assert fit_to_budget([[1], [2], [3, 3, 3], [4]], 4) == ([[1], [4]], 2)


def test_too_long_protected_segments_are_cut_to_a_common_length() -> None:
    segments = [[1] * 9, [2], [3] * 5]
    assert fit_to_budget(segments, 11) == ([[1] * 6, [3] * 5], 1)
    assert fit_to_budget(segments, 7) == ([[1] * 4, [3] * 3], 1)
    assert fit_to_budget(segments, 0) == ([[], []], 1)


def test_arrays_stay_arrays() -> None:
    kept, _ = fit_to_budget([np.arange(4), np.arange(3)], 5)
    assert [list(segment) for segment in kept] == [[0, 1, 2], [0, 1]]


@given(
    st.lists(st.integers(0, 8), max_size=12),
    st.integers(0, 40),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_promises(lengths: list[int], budget: int, first: int, last: int) -> None:
    segments = [[place] * length for place, length in enumerate(lengths)]
    kept, num_dropped = fit_to_budget(segments, budget, first, last)
    assert sum(map(len, kept)) <= budget
    assert len(kept) + num_dropped == len(segments)
    start = min(first, len(segments))
    survivors = segments[:start] + segments[start + num_dropped :]
    protected = min(len(segments), first + last)
    assert len(kept) >= protected
    cut = [len(a) - len(b) for a, b in zip(survivors, kept, strict=True)]
    assert all(a[: len(b)] == b for a, b in zip(survivors, kept, strict=True))
    if any(cut):
        # Only when nothing but protected segments is left, and not a token more than needed.
        assert len(kept) == protected
        assert sum(map(len, kept)) == budget
        longest = max(map(len, kept))
        assert all(len(b) >= longest - 1 for b, c in zip(kept, cut, strict=True) if c)
    elif num_dropped:
        one_more = len(segments[start + num_dropped - 1]) + sum(map(len, kept))
        assert one_more > budget


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (5, -1, 1), (5, 1, -1)])
def test_negative_numbers(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        fit_to_budget([[1]], *numbers)
