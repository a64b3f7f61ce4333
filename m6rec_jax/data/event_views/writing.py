"""The views of `text.writing_templates`: a text about an item that the user liked."""

from __future__ import annotations

import numpy as np

from m6rec_jax.data.bucket_rows import BucketRows
from m6rec_jax.data.event_views.view import EventView, Rows
from m6rec_jax.data.user_bucket import Groups
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.writing_templates import common_values

# As of all views whose texts are generated.
GENERATED = (
    "text_id str, text_index int, user_id str, item_indices int[], seen_indices int[], "
    "source str[], prefix str, target str, features str[]"
)


class WritingView(EventView):
    """One of `writing_templates.WRITING`; a row is of one event."""

    columns = f"{GENERATED}, liked_indices int[]"
    numbered = True

    def __init__(self, kind: str) -> None:
        self.name = kind

    def check(self, template: DatasetTemplate, where: str) -> None:
        if self.name not in template.writing:
            raise ConfigError(
                f"{where}: 'template.writing' has no {self.name!r}, so there is no text to prepare "
                f"(it has: {', '.join(template.writing) or 'none'})"
            )

    def rows(self, made: BucketRows, groups: Groups) -> Rows:
        template, bucket = made.template.writing[self.name], made.bucket
        common = common_values(made.items, template.shared)
        ranges = bucket.histories(groups, made.max_events)
        liked = made.label.labels(bucket.value).astype(bool)
        rows, written, likes = [], [], []
        for number in np.flatnonzero(liked[groups.rows.low]).tolist():
            past = bucket.past[ranges.low[number] : ranges.high[number]]
            indices = bucket.item[past[liked[past]]].tolist()
            item = made.items[bucket.item[groups.rows.low[number]]]
            text = template.written(item, [made.items[index] for index in indices], common)
            if text is not None:
                rows.append(number)
                written.append((item, text))
                likes.append(indices)
        group_id = made.numbers(self.name, groups)[rows]
        groups = groups.take(np.asarray(rows, np.int64))
        users = [made.users[user].id for user in bucket.user[groups.rows.low].tolist()]
        histories = made.histories(groups, made.features(groups)).to_pylist()
        columns = {
            "text_id": [
                f"{user}/{item.id}" for user, (item, _) in zip(users, written, strict=True)
            ],
            "text_index": group_id,
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
