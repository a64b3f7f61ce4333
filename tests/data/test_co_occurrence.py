"""CoOccurrence of items in sequences, against counting by hand, and the rows drawn by it."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.features import co_occurrence, reranking_candidates
from m6rec_jax.data.features.co_occurrence import (
    CoOccurrence,
    GrowingCoOccurrence,
    rank_words,
)
from m6rec_jax.data.features.reranking_candidates import RerankingCandidates
from m6rec_jax.data.splitting.splits import TEST, TRAIN
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
    steps=st.lists(st.integers(0, 40), max_size=6),
    window=st.integers(1, 4),
    at_once=st.integers(1, 9),
)
def test_counts_grow_as_event_by_event(
    events, day, steps, window, at_once, tmp_path_factory
) -> None:
    """At every step to the last bit, in one go as from what was saved the day before."""
    by_event, counted_by_event = CoOccurrenceByEvent(NUM_ITEMS), 0
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
        all_at_once = GrowingCoOccurrence(*columns(events), NUM_ITEMS)
        of_today = columns(tail + events[day:]), NUM_ITEMS, yesterday, len(tail)
        continued = GrowingCoOccurrence(*of_today[0], *of_today[1:])
        whole = CoOccurrence.counted(*of_today[0], *of_today[1:])
        for number in sorted({min(step, len(events)) for step in steps} | {len(events)}):
            for user, item in events[counted_by_event:number]:
                by_event.update(str(user), item)
            counted_by_event = number
            all_at_once.advance(number)
            grown = [all_at_once]
            if number >= day:
                continued.advance(len(tail) + number - day)
                grown.append(continued)
            for one in grown:
                for recent, out in (([0, 1, 2], []), ([3, 4], [0]), ([5], None)):
                    found, expected = one.related(recent, out), by_event.related(recent, out)
                    assert found.items.tolist() == expected.items.tolist()
                    assert found.shares.tolist() == expected.shares.tolist()
        for one in (all_at_once.amounts, whole.amounts):
            assert (one != counted(events).amounts).nnz == 0
        assert (whole.later != counted(events).later).nnz == 0


def test_words_are_few_and_in_order() -> None:
    words = [rank_words(rank) for rank in range(1, 1682)]
    assert words[:3] == ["near 1", "near 2", "near 3"]
    assert words[20] == words[21] == "near 22"
    assert words[-1] == "near 1000"
    assert len(set(words)) < 70
    numbers = [int(word.split()[1]) for word in words]
    assert numbers == sorted(numbers)
    assert rank_words(0) == "not near"


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch) -> None:
    monkeypatch.setattr(reranking_candidates, "NEGATIVES", 2)
    monkeypatch.setattr(reranking_candidates, "DEPTH", 4)


def drawn_from(never=(), repeats=False) -> RerankingCandidates:
    # 0 stands next to 1 twice, to 2 and 3 once; 4 is two places away.
    sequences = [(0, [1, 0]), (1, [1, 0, 2]), (2, [3, 0]), (3, [0, 5, 4])]
    events = [(user, item) for user, items in sequences for item in items]
    counts = counted(events)
    held_out = np.isin(np.arange(NUM_ITEMS), never)
    return RerankingCandidates(counts, held_out, repeats=repeats)


def drawn(candidates, wanted, history, part=TRAIN) -> tuple[list[int], list[int]] | None:
    found = candidates.draw(part, 0, wanted, history, history)
    return found and tuple(numbers.tolist() for numbers in found)


def test_rows_hold_the_wanted_item_and_some_that_are_near() -> None:
    candidates = drawn_from()
    assert candidates.counts.related([0]).items.tolist() == [1, 2, 3, 5, 4]
    items, ranks = drawn(candidates, 2, [0])
    assert items[0] == 2
    assert ranks == [[0, 1, 2, 3, 5, 4].index(item) for item in items]
    # What comes later may be drawn, the wanted item and what is beyond the list may not.
    assert len(set(items)) == 3
    assert set(items[1:]) <= {1, 3, 5}
    assert drawn(candidates, 2, [0]) == (items, ranks)


def test_what_the_user_had_may_come_again() -> None:
    """0 and 1 were had; by what stands next to both, 0 is the second after 1 itself."""
    assert drawn(drawn_from(), 0, [0, 1]) is None
    again = drawn_from(repeats=True)
    items, ranks = drawn(again, 0, [0, 1])
    order = again.counts.related([0, 1], ()).items.tolist()
    assert {0, 1} <= set(order)
    assert ranks == [order.index(item) + 1 for item in items]


def test_rows_that_teach_nothing_are_left_out_of_training_only() -> None:
    candidates = drawn_from()
    assert drawn(candidates, 7, [0]) is None  # stood near nothing
    assert drawn(candidates, 4, [0]) is None  # beyond the list
    assert drawn(candidates, 2, [7]) is None  # nothing to compare it with
    items, ranks = drawn(candidates, 7, [0], TEST)
    assert (items[0], ranks[0], len(items)) == (7, 0, 3)
    assert drawn(candidates, 4, [0], TEST)[1][0] == 5
    assert drawn(candidates, 7, [], TEST) == ([7], [0])


def test_held_out_items_are_never_drawn() -> None:
    assert drawn(drawn_from(never=(1, 3)), 2, [0])[0] == [2, 5]
