"""The view 'catalogue': every item's text, in the order of the items table."""

from __future__ import annotations

import numpy as np

from m6rec_jax.data.features.user_bucket import Groups
from m6rec_jax.data.rendering.event_views.view import Rows, View
from m6rec_jax.data.rendering.shard_rows import ShardRows
from m6rec_jax.data.splitting.splits import TRAIN


def _rows(shard: ShardRows, groups: Groups) -> Rows:
    # All of them stand in one file, that of the first shard.
    first = shard.first_new if shard.place == 0 else len(shard.items)
    items = shard.items[first:]
    columns = {
        "item_id": [item.id for item in items],
        "item_index": np.arange(first, len(shard.items)),
        "text": list(map(shard.template.item, items)),
    }
    return Rows(columns, np.full(len(items), TRAIN))


CATALOGUE = View("catalogue", "item_id str, item_index int, text str", _rows, shuffled=False)
