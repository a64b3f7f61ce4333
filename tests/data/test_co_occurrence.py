"""CoOccurrence of items in sequences, against counting by hand, and the rows drawn by it."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.features import co_occurrence
from m6rec_jax.data.features.co_occurrence import (
    CoOccurrence,
)
from tests.data.view_fold import CoOccurrenceByEvent

NUM_ITEMS = 8
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, NUM_ITEMS - 1)), max_size=40)


def counted(events) -> CoOccurrence:
    return CoOccurrence.counted(*columns(events), NUM_ITEMS)


@contextlib.contextmanager
def counting(window: int, recent: int) -> Iterator[pytest.MonkeyPatch]:
    """Small numbers in place of those that fit real data."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WINDOW", window), ("RECENT", recent), ("SMOOTHING", 2.0)):
            patch.setattr(co_occurrence, name, value)
        yield patch


def columns(events) -> tuple[np.ndarray, np.ndarray]:
    found = np.asarray(events, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def shares_by_hand(events, recent, window: int, most: int, later: bool) -> np.ndarray:
    """The definition, over a square array."""
    smoothing = 2.0 / (2 if later else 1)
    near = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for user in range(4):
        sequence = [item for other, item in events if other == user]
        for first, a in enumerate(sequence):
            for distance, b in enumerate(sequence[first + 1 : first + 1 + window], 1):
                if a != b:
                    near[a, b] += 1 / distance
                    near[b, a] += 0 if later else 1 / distance
    shares, last = np.zeros(NUM_ITEMS), recent[::-1][:most]
    for place, item in enumerate(last, 1):
        shares += near[item] / (near[item].sum() + smoothing) / place
    return shares / sum(1 / place for place in range(1, len(last) + 1)) if last else shares


@settings(max_examples=40)
@given(
    events=EVENTS,
    recent=st.lists(st.integers(0, NUM_ITEMS - 1), max_size=5),
    out=st.none() | st.lists(st.integers(0, NUM_ITEMS - 1), max_size=3),
    window=st.integers(1, 4),
    last=st.integers(1, 3),
    later=st.booleans(),
)
def test_ranking_equals_counting_by_hand(events, recent, out, window, last, later) -> None:
    with counting(window, last):
        counts = counted(events)
        found = (counts.followers if later else counts.related)(recent, out)
    shares = shares_by_hand(events, recent, window, last, later)
    left = [
        i for i in range(NUM_ITEMS) if shares[i] > 0 and i not in (recent if out is None else out)
    ]
    expected = sorted(left, key=lambda item: (-round(shares[item], 12), item))
    assert found.items.tolist() == expected
    # Sums in another order.
    np.testing.assert_allclose(found.shares, shares[expected], atol=1e-11)


@settings(max_examples=25)
@given(
    events=EVENTS,
    day=st.integers(0, 40),
    window=st.integers(1, 4),
    at_once=st.integers(1, 9),
)
def test_counts_are_those_event_by_event(events, day, window, at_once, tmp_path_factory) -> None:
    """To the last bit, in one go as from what was saved the day before."""
    by_event = CoOccurrenceByEvent(NUM_ITEMS)
    day = min(day, len(events))
    folder = tmp_path_factory.mktemp("counts")
    with counting(window, 3) as patch:
        patch.setattr(co_occurrence, "_EVENTS_AT_ONCE", at_once)
        of_yesterday = counted(events[:day])
        of_yesterday.save(folder)
        yesterday = CoOccurrence.load(folder)
        assert yesterday.num_items == NUM_ITEMS
        assert (yesterday.later != of_yesterday.later).nnz == 0
        # Of each user what the window holds; all but that is forgotten.
        last = [
            n
            for n in range(day)
            if sum(user == events[n][0] for user, _ in events[n + 1 : day]) < window
        ]
        tail = [events[n] for n in last]
        users, items = columns(tail + events[day:])
        whole = CoOccurrence.counted(users, items, NUM_ITEMS, yesterday, len(tail))
        for user, item in events:
            by_event.update(str(user), item)
        for recent, out in (([0, 1, 2], []), ([3, 4], [0]), ([5], None)):
            found, expected = whole.related(recent, out), by_event.related(recent, out)
            assert found.items.tolist() == expected.items.tolist()
            assert found.shares.tolist() == expected.shares.tolist()
        assert (whole.amounts != counted(events).amounts).nnz == 0
        assert (whole.later != counted(events).later).nnz == 0
