"""The view 'reranking': a history, and candidates with their rank by co-occurrence."""

from __future__ import annotations

import numpy as np

from m6rec_jax.data.features.co_occurrence import RECENT, ranked_text
from m6rec_jax.data.features.user_events import Groups
from m6rec_jax.data.rendering.event_views.view import OF_USER, Rows, View
from m6rec_jax.data.rendering.shard_rows import ShardRows, lists
from m6rec_jax.text.column_text import distinct_texts


def _rows(shard: ShardRows, groups: Groups) -> Rows:
    drawn = shard.drawn
    assert drawn is not None
    there = drawn.counts > 0
    groups, counts = groups.take(there), drawn.counts[there]
    inside = np.arange(drawn.items.shape[1]) < counts[:, None]
    items, ranks = drawn.items[there][inside], drawn.ranks[there][inside]
    texts = distinct_texts(
        [ranks, items],
        lambda n: ranked_text(int(ranks[n]), shard.template.item(shard.items[items[n]])),
    )
    ends = np.append(0, np.cumsum(counts))
    recent = groups.history.last(min(shard.max_events, RECENT))
    recent_items = shard.bucket.item[shard.bucket.past[recent.numbers]]
    columns = {
        **shard.of_users(groups, shard.features(groups)),
        "recent_indices": lists(recent.offsets, recent_items),
        "candidates": lists(ends, texts),
        "item_indices": lists(ends, items),
        "labels": lists(ends, np.nonzero(inside)[1] == 0),
    }
    return Rows(columns, groups.part)


# Its rows are about the first event of each row of 'next_items'.
RERANKING = View(
    name="reranking",
    seed=2,
    columns=f"{OF_USER}, recent_indices int[], candidates str[], item_indices int[], labels int[]",
    rows=_rows,
    size=lambda options, negatives: options.next_items_size,
    strict=False,
    of_candidates=True,
    wants_items=True,
    counted=True,
)
