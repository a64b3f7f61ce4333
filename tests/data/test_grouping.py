"""Groups of rows: what one user's rows see, and what is drawn as a negative for none of them."""

import numpy as np
import pytest

from m6rec_jax.data.grouping import Grouping, UserEvents, groups_of_user
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
