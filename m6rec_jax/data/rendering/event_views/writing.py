"""The views of `text.writing_templates`: a text about an item that the user liked."""

from __future__ import annotations

import functools

import numpy as np

from m6rec_jax.data.features.user_events import Groups
from m6rec_jax.data.rendering.event_views.view import GENERATED, Rows, View
from m6rec_jax.data.rendering.shard_rows import ShardRows
from m6rec_jax.text.writing_templates import WRITING, common_values


def _rows(shard: ShardRows, groups: Groups, kind: str) -> Rows:
    """A row is of one event."""
    template, bucket = shard.template.writing[kind], shard.bucket
    common = common_values(shard.items, template.shared)
    ranges = groups.history.last(shard.max_events)
    liked = shard.label.labels(bucket.value).astype(bool)
    rows, written, likes = [], [], []
    for number in np.flatnonzero(liked[groups.rows.low]).tolist():
        past = bucket.past[ranges.low[number] : ranges.high[number]]
        indices = bucket.item[past[liked[past]]].tolist()
        item = shard.items[bucket.item[groups.rows.low[number]]]
        text = template.written(item, [shard.items[index] for index in indices], common)
        if text is not None:
            rows.append(number)
            written.append((item, text))
            likes.append(indices)
    groups = groups.take(np.asarray(rows, np.int64))
    users = [shard.users[user].id for user in bucket.user[groups.rows.low].tolist()]
    histories = shard.histories(groups, shard.features(groups)).to_pylist()
    columns = {
        "text_id": [f"{user}/{item.id}" for user, (item, _) in zip(users, written, strict=True)],
        "text_index": bucket.row[groups.rows.low],
        "user_id": users,
        "item_indices": [[item] for item in bucket.item[groups.rows.low].tolist()],
        "seen_indices": [[] for _ in rows],
        "liked_indices": likes,
        "source": [
            template.source(history, item)
            for history, (item, _) in zip(histories, written, strict=True)
        ],
        "prefix": [template.render_prefix(item) for item, _ in written],
        "target": [text.text for _, text in written],
        "features": [list(text.features) for _, text in written],
    }
    return Rows(columns, groups.part)


WRITING_VIEWS = [
    View(kind, seed, f"{GENERATED}, liked_indices int[]", functools.partial(_rows, kind=kind))
    for seed, kind in enumerate(WRITING, 6)
]
