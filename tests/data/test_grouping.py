"""Groups of rows: what one user's rows see, and what is drawn as a negative for none of them."""

import numpy as np
import pytest

from m6rec_jax.data import grouping
from m6rec_jax.data.assignment import UserEvents
from m6rec_jax.data.grouping import Grouping, group_batches, groups_of, groups_of_user
from m6rec_jax.data.splits import TEST, TRAIN


@pytest.mark.parametrize("strict", [True, False])
def test_items_of_one_basket_are_no_negatives_of_each_other(strict: bool) -> None:
    """Three items of one moment after one before; a test event of that moment stays unknown."""
    events = UserEvents(
        user=0,
        rows=np.arange(5),
        items=np.array([7, 1, 2, 3, 9]),
        times=np.array([10.0, 20.0, 20.0, 20.0, 20.0]),
        values=np.full(5, np.nan),
    )
    codes = np.array([TRAIN, TRAIN, TRAIN, TRAIN, TEST])
    groups = list(groups_of_user(events, codes, Grouping(1, 8, strict=strict, with_seen=True)))
    of_basket = groups[1:4]
    assert [group.items for group in of_basket] == [[1], [2], [3]]
    if strict:
        assert [group.history_items for group in of_basket] == [[7]] * 3
        assert [group.seen for group in of_basket] == [[1, 2, 3, 7]] * 3
    else:
        assert [group.seen for group in of_basket] == [[7], [1, 7], [1, 2, 7]]


def test_batches_of_long_histories_are_short(monkeypatch) -> None:
    """What a group holds of its user's past grows with it: batches are bounded by that."""
    monkeypatch.setattr(grouping, "_ITEMS_AT_A_TIME", 1_000)
    number = 200
    user = UserEvents(
        0,
        np.arange(number),
        np.arange(number),
        np.arange(number, dtype=float),
        np.full(number, np.nan),
    )
    batches = list(
        group_batches(
            [user], np.full(number, TRAIN), Grouping(size=1, max_events=9, with_seen=True)
        )
    )
    groups = [group for batch in batches for group in groups_of(batch)]
    assert [group.group_id for group in groups] == list(range(number))
    assert [len(group.seen) for group in groups] == list(range(1, number + 1))  # its own, too
    held = [sum(len(g.seen) + len(g.history_items) for g in groups_of(b)) for b in batches]
    assert max(held) <= 1_000 + number + 9
