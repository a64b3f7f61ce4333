"""Groups of rows: what one user's rows see, and what is drawn as a negative for none of them."""

import numpy as np
import pytest

from m6rec_jax.data.grouping import Grouping
from m6rec_jax.data.splits import TEST, TRAIN, VALIDATION
from tests.data.fold import UserEvents, groups_of_user


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
        assert [group.seen for group in of_basket] == [[7]] * 3
        assert [group.moment for group in of_basket] == [[1, 2, 3, 9]] * 3
    else:
        assert [group.seen for group in of_basket] == [[7], [1, 7], [1, 2, 7]]


def test_repeats_that_are_ignored_are_behaviours_and_separate_groups() -> None:
    """Item 1 again and again: in its own part, and in a later one."""
    codes = np.array([TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST])
    items = np.array([1, 2, 1, 3, 4, 1, 5, 5, 6])
    times = np.arange(9.0)
    events = UserEvents(0, np.arange(9), items, times, np.full(9, np.nan))
    found = list(groups_of_user(events, codes, Grouping(5, 9, strict=True, repeats=False)))
    assert [(group.items, group.history_items) for group in found] == [
        ([1, 2], []),
        ([3, 4], [1, 2, 1]),
        ([5], [1, 2, 1, 3, 4]),
        ([6], [1, 2, 1, 3, 4, 1, 5]),
    ]
    counted = list(groups_of_user(events, codes, Grouping(5, 9, strict=True)))
    assert [group.items for group in counted] == [[1, 2, 1, 3, 4], [1, 5], [5, 6]]
