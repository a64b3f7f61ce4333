"""The view 'catalogue': every item's text, in the order of the items table."""

from __future__ import annotations

import numpy as np

from m6rec_jax.data.bucket_rows import BucketRows
from m6rec_jax.data.event_views.view import EventView, Rows
from m6rec_jax.data.splits import TRAIN
from m6rec_jax.data.user_bucket import Groups


class CatalogueView(EventView):
    name = "catalogue"
    of_events = False
    columns = "item_id str, item_index int, text str"

    def rows(self, made: BucketRows, groups: Groups) -> Rows:
        job = made.job
        # All of them stand in one file, that of the first bucket.
        first = job.num_old_items if made.number == job.buckets[0] else len(made.items)
        items = made.items[first:]
        columns = {
            "item_id": [item.id for item in items],
            "item_index": np.arange(first, len(made.items)),
            "text": list(map(made.template.item, items)),
        }
        return Rows(columns, np.full(len(items), TRAIN))
