"""The view 'groups': a history and a few candidates with labels, for scoring."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from m6rec_jax.data.bucket_rows import BucketRows, lists
from m6rec_jax.data.epochs import epoch_of
from m6rec_jax.data.event_views.view import OF_USER, EventView, Rows
from m6rec_jax.data.negatives import asked, num_negatives
from m6rec_jax.data.past_events import Ranges
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.user_bucket import Groups

if TYPE_CHECKING:  # with DuckDB, which serving goes without
    from m6rec_jax.data.reading import Dataset


class GroupsView(EventView):
    name = "groups"
    columns = (
        f"group_id int, {OF_USER}, candidates str[], item_indices int[], labels int[], "
        "ratings value[]"
    )
    of_candidates = wants_items = numbered = True

    def size(self, options: PrepareOptions, negatives: int) -> int:
        return max(1, options.group_size // (1 + negatives))

    def with_seen(self, negatives: int) -> bool:
        return negatives > 0

    def own_settings(self, dataset: Dataset, options: PrepareOptions) -> list[Any]:
        negatives = num_negatives(dataset, options)
        return [[negatives, options.negative_power, options.seed]] if negatives else []

    def rows(self, made: BucketRows, groups: Groups) -> Rows:
        own = candidates_of(made, groups)
        features = made.features(groups)
        texts = made.candidate_texts(features, own.ranges, own.items)
        columns = {
            **made.of_users(groups, features),
            "group_id": made.numbers(self.name, groups),
            "candidates": lists(own.ranges, texts),
            "item_indices": lists(own.ranges, own.items),
            "labels": lists(own.ranges, own.labels),
            "ratings": lists(own.ranges, own.values.astype(np.float32)),
        }
        return Rows(columns, groups.part)


class Candidates(NamedTuple):
    """What is to be scored: items, their values (NaN for none) and labels `[candidates]`."""

    ranges: Ranges  # of each group among the candidates
    items: np.ndarray
    values: np.ndarray
    labels: np.ndarray


def candidates_of(made: BucketRows, groups: Groups) -> Candidates:
    """What is to be scored: the events of groups, each followed by the negatives sampled for it."""
    bucket, label = made.bucket, made.label
    values_of = bucket.value[groups.rows.numbers]
    offsets = groups.rows.offsets
    ranges = Ranges(offsets[:-1], offsets[1:])
    shown = bucket.item[groups.rows.numbers]
    job = made.job
    if not job.negatives:
        return Candidates(ranges, shown, values_of, label.labels(values_of))
    popularity = job.popularity
    positions, had = bucket.seen(groups.history)
    seen = bucket.item[positions]
    epochs = epoch_of(bucket.timeline.count[groups.place], popularity.schedule)
    items: list[int] = []
    values: list[float] = []
    labels: list[int] = []
    lengths = []
    for group, epoch in enumerate(epochs.tolist()):
        own = slice(ranges.low[group], ranges.high[group])
        positives = shown[own].tolist()
        first = groups.rows.low[group]
        user, time = made.users[bucket.user[first]].id, float(bucket.time[first])
        drawn = job.sampler.draw(
            popularity.cumulative[epoch],
            key=f"{user}:{time}:{made.items[positives[0]].id}",
            positives=positives,
            seen=seen[had.low[group] : had.high[group]].tolist(),
            moment=bucket.item[bucket.moment[first] : bucket.moment_end[first]].tolist(),
            count=job.negatives,
        )
        before = len(items)
        of_group = values_of[own].tolist()
        for row in asked(drawn):
            items += [positives[row], *drawn[row]]
            values += [of_group[row]] + [math.nan] * len(drawn[row])
            labels += [1] + [0] * len(drawn[row])
        lengths.append(len(items) - before)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Candidates(
        Ranges(offsets[:-1], offsets[1:]),
        np.asarray(items, np.int64),
        np.asarray(values, np.float64),
        np.asarray(labels, np.int64),
    )
