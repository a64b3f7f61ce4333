"""The statistics after the last event, as tables: what folding all events would leave behind.

`statistics_files` says what the tables hold. Users and items are in the order in which they came
first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from m6rec_jax.data import statistics_files
from m6rec_jax.data.bucket_features import SharedStatistics, ValueCounts
from m6rec_jax.data.epochs import Population, Standings, WindowEntries
from m6rec_jax.data.statistics_state import FIRST_FIT, next_fit, next_refresh
from m6rec_jax.data.timeline import Timeline, running_sums
from m6rec_jax.data.user_bucket import Ranges, UserBucket


@dataclasses.dataclass(frozen=True)
class UserStates:
    """What is known of the users of a bucket in the end. Make it with `of_bucket`.

    Attributes:
      users: user (index in the table), first (place of its first event), count, positive, value,
        last_time, window, window_value, window_difference.
      by: user, column, name (its number), count, positive; in the order of `statistics_files`
        within a user.
      items: user, item (its number), times, last_time, in that order within a user; None where the
        options do not ask for it.
    """

    users: pa.Table
    by: pa.Table
    items: pa.Table | None

    @classmethod
    def of_bucket(cls, bucket: UserBucket, shared: SharedStatistics) -> UserStates:
        """Counts what a bucket holds."""
        some = np.flatnonzero(bucket.of_training.lengths)
        known = bucket.of_training[some]
        held, offsets = np.zeros(0, np.int64), np.zeros(len(some) + 1, np.int32)
        if shared.keeps_windows:
            positions, windows = bucket.windows(known)
            held, offsets = positions[windows.numbers], windows.offsets
        values = bucket.worth[held]
        columns = {
            "window": pa.array(shared.item_number[bucket.item[held]], pa.int32()),
            "window_value": pa.array(values),
            "window_difference": pa.array(values - bucket.timeline.mean(bucket.place[held])),
        }
        ends = pa.array(offsets, pa.int32())
        count, positive, total = bucket.counts(known)
        users = pa.table(
            {
                "user": bucket.users[some],
                "first": bucket.place[bucket.past[known.low]],
                "count": count,
                "positive": positive,
                "value": total,
                "last_time": bucket.time[bucket.past[known.high - 1]],
                **{name: pa.ListArray.from_arrays(ends, c) for name, c in columns.items()},
            }
        )
        items = _had(bucket, shared, known) if shared.options.user_items else None
        return cls(users, _by(bucket, shared, known), items)


def entries_of(bucket: UserBucket) -> pa.Table:
    """The entries of the users' windows: user, item, place, forgotten, value."""
    entries = bucket.past[bucket.entries[bucket.entries < bucket.of_training.high[-1]]]
    forgotten = np.full(len(entries), np.iinfo(np.int64).max)
    kept, later = entries[: -bucket.window], entries[bucket.window :]
    same = np.flatnonzero(bucket.user[kept] == bucket.user[later])
    forgotten[same] = bucket.place[later[same]]
    return pa.table(
        {
            "user": bucket.user[entries],
            "item": bucket.item[entries],
            "place": bucket.place[entries],
            "forgotten": forgotten,
            "value": bucket.worth[entries],
        }
    )


def _by(bucket: UserBucket, shared: SharedStatistics, known: Ranges) -> pa.Table:
    tables = [statistics_files.SCHEMAS["by"].empty_table()]
    items = bucket.item[bucket.past[known.numbers]]
    for column, values in enumerate(shared.item_values):
        ranges = values.ranges(items)
        of_user, number = known.owners[ranges.owners], values.numbers[ranges.numbers]
        keys = of_user * len(values.names) + number
        first = np.sort(np.unique(keys, return_index=True)[1])
        of_user, number = of_user[first], number[first]
        counts = ValueCounts(bucket, values).at(known[of_user], number)
        users = bucket.user[bucket.past[known.low[of_user]]]
        names = pa.array(values.names, pa.string()).take(pa.array(number))
        columns = np.full(len(first), column)
        tables.append(statistics_files.table("by", users, columns, names, *counts))
    return pa.concat_tables(tables)


def _had(bucket: UserBucket, shared: SharedStatistics, known: Ranges) -> pa.Table:
    positions, ranges = bucket.seen(known)
    first = positions[ranges.numbers]
    times, last = bucket.times_had(known[ranges.owners], bucket.item[first])
    return pa.table(
        {
            "user": bucket.user[first],
            "item": shared.item_number[bucket.item[first]],
            "times": times,
            "last_time": bucket.time[last],
        }
    )


def save_statistics(
    path: Path,
    timeline: Timeline,
    shared: SharedStatistics,
    states: Sequence[UserStates],
    entries: WindowEntries | None,
    pairs: tuple[np.ndarray, np.ndarray],
    item_ids: Sequence[str],
    user_ids: Sequence[str],
) -> None:
    """Writes a folder that `Statistics.load` reads.

    Args:
      path: of the folder.
      timeline: of all events.
      shared: see there.
      states: of all buckets.
      entries: of all windows; None where none are kept.
      pairs: of `PairCounts.to_arrays`, by numbers of items.
      item_ids, user_ids: in the order of the tables.
    """
    options = shared.options
    end = len(timeline.time)
    count = int(timeline.count[end])
    standings = Standings.of(
        timeline, len(item_ids), options.smoothing, shared.has_labels, last=True
    )
    factors = shared.factors.of(-1) if shared.factors is not None else None
    fitted = shared.factors.schedule if shared.factors is not None else np.zeros(0, np.int64)
    refreshed = int(standings.schedule[-1])
    scalars = {
        "count": count,
        "positive": int(timeline.positive[end]),
        "value": float(timeline.total[end]),
        "square": float(timeline.square[end]),
        "last_time": float(timeline.time[np.flatnonzero(timeline.counted)[-1]]),
        "next_refresh": next_refresh(refreshed),
        "next_fit": next_fit(int(fitted[-1]), options.factor_growth) if len(fitted) else FIRST_FIT,
        "factors_mean": factors.mean if factors is not None else 0.0,
    }
    tables = {
        "items": _items(timeline, shared, entries, item_ids),
        **_users(states, user_ids),
        "pairs": statistics_files.table("pairs", pairs[0], *pairs[1].T),
        "ranks": statistics_files.ranks_table(
            _sorted(standings.counts[-1:]), _sorted(standings.shares[-1:])
        ),
        "factors": statistics_files.table(
            "factors",
            factors.item_bias if factors is not None else (),
            factors.item_factors.tolist() if factors is not None else (),
        ),
    }
    statistics_files.write(path, shared, scalars, tables)


def _items(
    timeline: Timeline,
    shared: SharedStatistics,
    entries: WindowEntries | None,
    item_ids: Sequence[str],
) -> pa.Table:
    known = np.flatnonzero(timeline.first_place(np.arange(len(item_ids))) < len(timeline.time))
    items = known[np.argsort(shared.item_number[known])]
    count, positive, total = timeline.of_items(items, np.full(len(items), len(timeline.time)))
    holders, square = np.zeros(len(items), np.int64), np.zeros(len(items))
    if entries is not None:
        order = np.lexsort((entries.place, entries.item))
        above = entries.difference[order]
        holders = np.bincount(entries.item, minlength=len(items))
        starts = np.concatenate([[0], np.cumsum(holders)])
        square = running_sums(above * above, starts)[starts[1:] - 1]
    ids = pa.array(item_ids, pa.string()).take(pa.array(items))
    return statistics_files.table("items", ids, count, positive, total, holders, square)


def _users(states: Sequence[UserStates], user_ids: Sequence[str]) -> dict[str, pa.Table]:
    users = pa.concat_tables([state.users for state in states]).sort_by("first")
    index = users.column("user").to_numpy()
    ids = pa.array(user_ids, pa.string()).take(pa.array(index))
    number = np.zeros(len(user_ids), np.int64)
    number[index] = np.arange(len(index))
    by = pa.concat_tables([state.by for state in states])
    of_user = number[by.column("user").to_numpy()]
    # Within a user and column, in the order in which they are.
    by = by.set_column(0, "user", pa.array(of_user)).take(
        pa.array(np.lexsort((by.column("column").to_numpy(), of_user)))
    )
    had = {}
    some = [state.items for state in states if state.items is not None]
    if some:
        of_user = number[pa.concat_tables(some).column("user").to_numpy()]
        items = pa.concat_tables(some).set_column(0, "user", pa.array(of_user))
        order = np.argsort(of_user, kind="stable")
        had[statistics_files.USER_ITEMS] = statistics_files.table(
            statistics_files.USER_ITEMS,
            *(items[name].to_numpy()[order] for name in items.column_names),
        )
    named = users.drop_columns(["user", "first"]).add_column(0, "user_id", ids)
    return {"users": named.combine_chunks(), "by": by.combine_chunks(), **had}


def _sorted(populations: Sequence[Population]) -> list[float]:
    found: list[float] = []
    for population in populations:
        times = np.diff(population.not_higher, prepend=0)
        found = np.repeat(population.values, times).tolist()
    return found
