"""The view 'groups': a history and a few candidates with labels, for scoring."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from m6rec_jax.data.features.timeline import epoch_of
from m6rec_jax.data.features.user_events import Groups, Ranges
from m6rec_jax.data.rendering.event_views.view import OF_USER, Rows, View
from m6rec_jax.data.rendering.shard_rows import ShardRows, lists
from m6rec_jax.data.splitting.negatives import asked


def _rows(shard: ShardRows, groups: Groups) -> Rows:
    candidates = candidates_of(shard, groups)
    ranges = candidates.ranges
    features = shard.features(groups)
    texts = shard.candidate_texts(features, ranges, candidates.items)
    columns = {
        **shard.of_users(groups, features),
        "candidates": lists(ranges.offsets, texts),
        "item_indices": lists(ranges.offsets, candidates.items),
        "labels": lists(ranges.offsets, candidates.labels),
        "ratings": lists(ranges.offsets, candidates.values.astype(np.float32)),
    }
    return Rows(columns, groups.part)


class Candidates(NamedTuple):
    """What is to be scored: items, their values (NaN for none) and labels `[candidates]`."""

    ranges: Ranges  # of each group among the candidates
    items: np.ndarray
    values: np.ndarray
    labels: np.ndarray


def candidates_of(shard: ShardRows, groups: Groups) -> Candidates:
    """What is to be scored: the events of groups, each followed by the negatives sampled for it."""
    bucket, job = shard.bucket, shard.job
    values, items = bucket.value[groups.rows.numbers], bucket.item[groups.rows.numbers]
    offsets = groups.rows.offsets
    if not job.negatives:
        labels = shard.label.labels(values)
        return Candidates(Ranges(offsets[:-1], offsets[1:]), items, values, labels)
    popularity = job.popularity
    positions, had = bucket.seen(groups.history)
    seen = bucket.item[positions]
    epochs = epoch_of(bucket.timeline.count[groups.place], popularity.schedule)
    # Places of the positives, each followed by its negatives as -1, and the items of both.
    places: list[int] = []
    chosen: list[int] = []
    ends = [0]
    for group, epoch in enumerate(epochs.tolist()):
        positives = items[offsets[group] : offsets[group + 1]].tolist()
        first = groups.rows.low[group]
        user, time = shard.users[bucket.user[first]].id, float(bucket.time[first])
        drawn = shard.sampler.draw(
            popularity.cumulative[epoch],
            key=f"{user}:{time}:{shard.items[positives[0]].id}",
            positives=positives,
            seen=seen[had.low[group] : had.high[group]].tolist(),
            moment=bucket.item[bucket.moment[first] : bucket.moment_end[first]].tolist(),
            count=job.negatives,
        )
        for row in asked(drawn):
            places += [offsets[group] + row, *[-1] * len(drawn[row])]
            chosen += [positives[row], *drawn[row]]
        ends.append(len(chosen))
    place = np.asarray(places, np.int64)
    return Candidates(
        Ranges(np.asarray(ends[:-1], np.int64), np.asarray(ends[1:], np.int64)),
        np.asarray(chosen, np.int64),
        np.where(place < 0, np.nan, values[place]) if len(values) else np.zeros(0),
        (place >= 0).astype(np.int64),
    )


GROUPS = View(
    name="groups",
    seed=0,
    columns=f"{OF_USER}, candidates str[], item_indices int[], labels int[], ratings value[]",
    rows=_rows,
    size=lambda options, negatives: max(1, options.group_size // (1 + negatives)),
    of_candidates=True,
    wants_items=True,
)
