"""The view 'next_items': a history and the items that came next, for retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m6rec_jax.data import co_occurrence
from m6rec_jax.data.bucket_rows import BucketRows, lists
from m6rec_jax.data.event_views.view import OF_USER, EventView, Rows
from m6rec_jax.data.past_events import Ranges
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.user_bucket import Groups
from m6rec_jax.text.column_text import distinct_texts

if TYPE_CHECKING:  # with DuckDB, which serving goes without
    from m6rec_jax.data.reading import Dataset


class NextItemsView(EventView):
    name = "next_items"
    columns = f"{OF_USER}, items str[], item_indices int[]"
    wants_items = counted = True
    strict = False

    def size(self, options: PrepareOptions, negatives: int) -> int:
        return options.next_items_size

    def own_settings(self, dataset: Dataset, options: PrepareOptions) -> list[Any]:
        return [co_occurrence.FORMAT]

    def rows(self, made: BucketRows, groups: Groups) -> Rows:
        items = made.bucket.item[groups.rows.numbers]
        texts = distinct_texts([items], lambda n: made.template.item(made.items[items[n]]))
        own = Ranges(groups.rows.offsets[:-1], groups.rows.offsets[1:])
        columns = {
            **made.of_users(groups, made.features(groups)),
            "items": lists(own, texts),
            "item_indices": lists(own, items),
        }
        return Rows(columns, groups.part)
