"""The view 'next_items': a history and the items that came next, for retrieval."""

from __future__ import annotations

from m6rec_jax.data.features.user_events import Groups
from m6rec_jax.data.rendering.event_views.view import OF_USER, Rows, View
from m6rec_jax.data.rendering.shard_rows import ShardRows, lists
from m6rec_jax.text.column_text import distinct_texts


def _rows(shard: ShardRows, groups: Groups) -> Rows:
    items = shard.bucket.item[groups.rows.numbers]
    texts = distinct_texts([items], lambda n: shard.template.item(shard.items[items[n]]))
    columns = {
        **shard.of_users(groups, shard.features(groups)),
        "items": lists(groups.rows.offsets, texts),
        "item_indices": lists(groups.rows.offsets, items),
    }
    return Rows(columns, groups.part)


NEXT_ITEMS = View(
    name="next_items",
    seed=1,
    columns=f"{OF_USER}, items str[], item_indices int[]",
    rows=_rows,
    size=lambda options, negatives: options.next_items_size,
    strict=False,
    wants_items=True,
    counted=True,
)
