"""Co-occurrence of items in sequences, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.features import co_occurrence
from m6rec_jax.data.features.co_occurrence import ONE, CoOccurrence
from tests.data.fold import co_occurrence_of

NUM_ITEMS = 8
ITEM = st.integers(0, NUM_ITEMS - 1)
EVENTS = st.lists(st.tuples(st.integers(0, 3), ITEM), max_size=40)


def columns(events):
    return np.asarray(events, np.int64).reshape(-1, 2).T


def shares_by_hand(later, recent, most, is_later):
    """The definition, over a square array."""
    near, smoothing = (later / ONE, 1.0) if is_later else ((later + later.T) / ONE, 2.0)
    last = recent[::-1][:most]
    shares = [near[i] / (near[i].sum() + smoothing) / place for place, i in enumerate(last, 1)]
    return sum(shares, np.zeros(NUM_ITEMS)) / sum(1 / n for n in range(1, len(last) + 1) or [1])


@settings(max_examples=60)
@given(
    events=EVENTS,
    day=st.integers(0, 40),
    recent=st.lists(ITEM, max_size=5),
    out=st.none() | st.lists(ITEM, max_size=3),
    window=st.integers(1, 4),
    last=st.integers(1, 3),
    is_later=st.booleans(),
    at_once=st.integers(1, 9),
)
def test_counts_and_ranking_by_hand(
    events, day, recent, out, window, last, is_later, at_once, tmp_path_factory
):
    """Counts to the last bit, in one go as from what was saved the day before."""
    folder, day = tmp_path_factory.mktemp("counts"), min(day, len(events))
    with pytest.MonkeyPatch.context() as patch:
        small = {"WINDOW": window, "RECENT": last, "SMOOTHING": 2.0, "_EVENTS_AT_ONCE": at_once}
        for name, value in small.items():
            patch.setattr(co_occurrence, name, value)
        later = co_occurrence_of(*columns(events).tolist(), NUM_ITEMS)
        whole = CoOccurrence.counted(*columns(events), NUM_ITEMS)
        CoOccurrence.counted(*columns(events[:day]), NUM_ITEMS).save(folder)
        # Of each user what the window holds; all but that is forgotten.
        tail = [
            (user, item)
            for n, (user, item) in enumerate(events[:day])
            if sum(user == other for other, _ in events[n + 1 : day]) < window
        ]
        from_yesterday = CoOccurrence.counted(
            *columns(tail + events[day:]), NUM_ITEMS, CoOccurrence.load(folder), len(tail)
        )
        found = (whole.followers if is_later else whole.related)(recent, out)
    np.testing.assert_array_equal(whole.later.toarray(), later)
    np.testing.assert_array_equal(from_yesterday.later.toarray(), later)
    shares = shares_by_hand(later, recent, last, is_later)
    left_out = recent if out is None else out
    left = [item for item in range(NUM_ITEMS) if shares[item] > 0 and item not in left_out]
    assert found.items.tolist() == sorted(left, key=lambda i: (-round(shares[i], 12), i))
    # Sums in another order.
    np.testing.assert_allclose(found.shares, shares[found.items], atol=1e-11)
