"""The view 'reranking': a history, and candidates with their rank by co-occurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from m6rec_jax.data import co_occurrence
from m6rec_jax.data.bucket_rows import BucketRows, lists
from m6rec_jax.data.co_occurrence import RECENT, ranked_text
from m6rec_jax.data.event_views.next_items import NextItemsView
from m6rec_jax.data.event_views.view import OF_USER, Rows
from m6rec_jax.data.past_events import Ranges
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.user_bucket import Groups
from m6rec_jax.text.column_text import distinct_texts

if TYPE_CHECKING:  # with DuckDB, which serving goes without
    from m6rec_jax.data.reading import Dataset


class RerankingView(NextItemsView):
    """Its rows are about the first event of each row of 'next_items'."""

    name = "reranking"
    columns = f"{OF_USER}, recent_indices int[], candidates str[], item_indices int[], labels int[]"
    of_candidates = True

    def with_seen(self, negatives: int) -> bool:
        return True

    def own_settings(self, dataset: Dataset, options: PrepareOptions) -> list[Any]:
        drawn = [options.reranking_negatives, options.reranking_depth, options.seed]
        return [co_occurrence.FORMAT, drawn]

    def rows(self, made: BucketRows, groups: Groups) -> Rows:
        bucket, drawn = made.bucket, made.job.candidates(made.number)
        there = drawn.counts > 0
        groups = groups.take(there)
        counts = drawn.counts[there]
        inside = np.arange(drawn.items.shape[1]) < counts[:, None]
        items, ranks = drawn.items[there][inside], drawn.ranks[there][inside]
        texts = distinct_texts(
            [ranks, items],
            lambda n: ranked_text(int(ranks[n]), made.template.item(made.items[items[n]])),
        )
        ends = np.cumsum(counts)
        own = Ranges(ends - counts, ends)
        recent = bucket.histories(groups, min(made.max_events, RECENT))
        columns = {
            **made.of_users(groups, made.features(groups)),
            "recent_indices": lists(recent, bucket.item[bucket.past[recent.numbers]]),
            "candidates": lists(own, texts),
            "item_indices": lists(own, items),
            "labels": lists(own, np.nonzero(inside)[1] == 0),
        }
        return Rows(columns, groups.part)
