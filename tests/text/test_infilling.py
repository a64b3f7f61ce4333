import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.text.infilling import draw_spans, longest_text, span_counts

most_spans = st.integers(1, 100)


@given(st.integers(1, 300), most_spans, st.integers(0, 2**32))
def test_spans(length: int, most: int, seed: int) -> None:
    num_masked, num_spans = span_counts(length, most)
    masked, starts = draw_spans(length, num_masked, num_spans, np.random.default_rng(seed))
    assert masked.sum() == num_masked >= 1
    assert num_masked < length or length == 1
    # Runs of masked tokens, counted independently, begin exactly at the starts.
    runs = [i for i in range(length) if masked[i] and (i == 0 or not masked[i - 1])]
    assert list(np.flatnonzero(starts)) == runs
    assert len(runs) == num_spans <= most


@given(st.integers(1, 200), st.integers(2, 100), most_spans)
def test_longest_text_fits_and_one_more_does_not(source_room, target_room, most):
    def fits(length: int) -> bool:
        masked, spans = span_counts(length, most)
        return length - masked + spans <= source_room and masked + spans <= target_room

    length = longest_text(source_room, target_room, most)
    assert length >= 1
    assert all(map(fits, range(1, length + 1)))
    assert not fits(length + 1)


def test_every_arrangement_is_equally_likely() -> None:
    rng = np.random.default_rng(0)
    seen: collections.Counter[tuple[bool, ...]] = collections.Counter()
    for _ in range(6000):
        masked, _ = draw_spans(6, 3, 2, rng)
        seen[tuple(masked.tolist())] += 1
    # By hand: 2 ways to split 3 masked tokens, times C(4, 2) = 6 places among 3 unmasked ones.
    assert len(seen) == 12
    assert min(seen.values()) == pytest.approx(500, rel=0.2)
    assert max(seen.values()) == pytest.approx(500, rel=0.2)
