"""Statistics of all groups of a bucket, as sources of words: what `Statistics` says one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from m6rec_jax.data import words
from m6rec_jax.data.epochs import FittedFactors, Standings, epoch_of
from m6rec_jax.data.statistics_state import StatisticsOptions, StatisticsSettings, values_of
from m6rec_jax.data.user_bucket import Groups, Ranges, UserBucket, UserCounts
from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source
from m6rec_jax.text.records import Item, Value


@dataclasses.dataclass(frozen=True)
class ItemValues:
    """The values of one column of all items, numbered.

    Attributes:
      names: of the numbers.
      offsets: of each item's values in `numbers` `[items + 1]`.
      numbers: distinct within an item.
    """

    names: Sequence[str]
    offsets: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Item], field: str) -> ItemValues:
        """Reads a column of `statistics.by`."""
        known: dict[str, int] = {}
        found = [
            [known.setdefault(name, len(known)) for name in values_of(item, field)]
            for item in items
        ]
        offsets = np.concatenate([[0], np.cumsum([len(values) for values in found])])
        return cls(
            list(known), offsets, np.asarray([n for values in found for n in values], np.int64)
        )

    def ranges(self, items: np.ndarray) -> Ranges:
        """Where in `numbers` the values of items `[n]` are."""
        return Ranges(self.offsets[items], self.offsets[items + 1])


class ValueCounts:
    """How often a user met each value of a column, and liked it: `UserState.by`.

    Args:
      bucket: of the users.
      values: of the column.
    """

    def __init__(self, bucket: UserBucket, values: ItemValues) -> None:
        self._values = values
        ranges = values.ranges(bucket.item[bucket.past])
        # By user, value and place in the past, in this order.
        self._width = len(bucket.past) + 1
        keys = self._keys(bucket.past_start[ranges.owners], values.numbers[ranges.numbers])
        keys += ranges.owners
        order = np.argsort(keys)
        self._sorted = keys[order]
        liked = bucket.liked[bucket.past[ranges.owners[order]]]
        self._liked = np.concatenate([[0], np.cumsum(liked)])

    def at(self, known: Ranges, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Events with values, and positive ones among them. All `[n]`.

        Args:
          known: of the past, what is known of the users.
          numbers: of the values.
        """
        keys = self._keys(known.low, numbers)
        low, high = (np.searchsorted(self._sorted, keys + end) for end in (0, known.high))
        return high - low, self._liked[high] - self._liked[low]

    def _keys(self, starts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return (starts * len(self._values.names) + numbers) * self._width


@dataclasses.dataclass(frozen=True)
class SharedStatistics(StatisticsSettings):
    """What all buckets look things up in, beside the timeline.

    Attributes:
      by, at_least, has_values, options: see `StatisticsSettings`.
      item_values: for each column of `by`.
      item_number: number of each item, in the order in which items came first `[items]`.
      standings: None where no template asks for them.
      factors: None where no template asks for them.
    """

    by: tuple[str, ...]
    at_least: float | None
    has_values: bool
    options: StatisticsOptions
    item_values: Sequence[ItemValues]
    item_number: np.ndarray
    standings: Standings | None = None
    factors: FittedFactors | None = None


class GroupFeatures:
    """Statistics of users and items for the groups of a view.

    Args:
      bucket: of the groups.
      groups: that are asked about.
      shared: see there.
    """

    def __init__(self, bucket: UserBucket, groups: Groups, shared: SharedStatistics) -> None:
        self._bucket, self._groups, self._shared = bucket, groups, shared
        timeline = bucket.timeline
        self._share, self._mean = timeline.share(groups.place), timeline.mean(groups.place)
        self._spread = timeline.spread(groups.place)

    @cached_property
    def user_share(self) -> np.ndarray:
        """The user's smoothed share of liked items `[groups]`."""
        counts = self._counts
        return self._shared.smoothed(counts.positive, counts.events, self._share)

    def of_users(self, names: Sequence[str]) -> dict[str, Source]:
        """Features of `Statistics.user_features`, for each group."""
        counts = self._counts
        known = counts.events > 0
        mean = self._shared.smoothed(counts.total, counts.events, self._mean)
        make: Mapping[str, Callable[[str], Source]] = {
            "user_count": lambda n: words.of_distinct(n, counts.events, known, verbalize.count),
            "user_positive_percent": lambda n: words.percents(n, self.user_share, known),
            "user_mean_value": lambda n: words.rounded(n, mean, self._spread, known),
        }
        return {name: make[name](name) for name in names if name in make}

    def of_candidates(
        self,
        names: Sequence[str],
        candidates: Ranges,
        items: np.ndarray,
        neighbours: tuple[np.ndarray, np.ndarray] | None,
    ) -> dict[str, Source]:
        """Features of `Statistics.group_features`, for each candidate.

        Args:
          names: which.
          candidates: each group's ones among `items`.
          items: indices in the items table `[candidates]`.
          neighbours: of `NeighbourFold.answer`.
        """
        owners, shared = candidates.owners, self._shared
        found = {
            name: Source(source.codes[owners], source.values, name)
            for name, source in self.of_users(names).items()
        }
        place, spread = self._groups.place[owners], self._spread[owners]
        count, positive, total = self._bucket.timeline.of_items(items, place)
        known = count > 0
        make: dict[str, Callable[[str], Source]] = {}

        def standing(kind: str, numbers: np.ndarray) -> None:
            """Adds makers of both words about a standing."""
            assert shared.standings is not None
            populations = getattr(shared.standings, kind)
            counts = self._bucket.timeline.count[place]
            not_higher, size = np.zeros(len(known), np.int64), np.ones(len(known), np.int64)
            not_higher[known], size[known] = shared.standings.standing(
                populations, numbers[known], counts[known]
            )
            rank = np.minimum(100, 100 * (size - not_higher) // size + 1)
            prefix = "item_popularity" if kind == "counts" else "item_liked"
            make[f"{prefix}_top"] = lambda n: words.of_distinct(
                n, not_higher / size, known, verbalize.percentile
            )
            make[f"{prefix}_rank"] = lambda n: words.of_distinct(n, rank, known, int)

        make["item_count"] = lambda n: words.of_distinct(n, count, known, verbalize.count)
        share = shared.smoothed(positive, count, self._share[owners])
        make["item_positive_percent"] = lambda n: words.percents(n, share, known)
        mean = shared.smoothed(total, count, self._mean[owners])
        make["item_mean_value"] = lambda n: words.rounded(n, mean, spread, known)
        if any(name.startswith("item_popularity_") for name in names):
            standing("counts", count.astype(np.float64))
        if any(name.startswith("item_liked_") for name in names):
            standing("shares", share)
        if not {"user_item_times", "user_item_ago"}.isdisjoint(names):
            times, last = self._bucket.times_had(self._groups.known[owners], items)
            ages = self._bucket.time[self._groups.rows.low][owners] - self._bucket.time[last]
            had = times > 0
            make["user_item_times"] = lambda n: words.of_distinct(n, times, had, verbalize.count)
            make["user_item_ago"] = lambda n: words.ages(n, ages, had)
        if neighbours is not None:
            first, second = neighbours
            make["user_taste_difference"] = lambda n: words.rounded(
                n, first, spread, ~np.isnan(first), signed=True
            )
            felt = ~np.isnan(second)
            make["user_neighbours_times"] = lambda n: words.of_distinct(
                n, second, felt, lambda times: f"{times:.1f}"
            )
            make["user_neighbours_percent"] = lambda n: words.percents(
                n, np.nan_to_num(second), felt
            )
        if "user_expected_value" in names:
            expected = self._expected(candidates, items)
            make["user_expected_value"] = lambda n: words.rounded(
                n, np.nan_to_num(expected), spread, ~np.isnan(expected)
            )
        for field, values in zip(shared.by, shared.item_values, strict=True):
            if not {f"user_{field}_counts", f"user_{field}_percent"}.isdisjoint(names):
                found |= self._of_values(field, values, owners, items, names)
        found |= {name: maker(name) for name, maker in make.items() if name in names}
        return found

    @cached_property
    def _counts(self) -> UserCounts:
        return self._bucket.counts(self._groups.known)

    def _of_values(
        self,
        field: str,
        values: ItemValues,
        owners: np.ndarray,
        items: np.ndarray,
        names: Sequence[str],
    ) -> dict[str, Source]:
        counts = ValueCounts(self._bucket, values)
        ranges = values.ranges(items)
        asked = ranges.owners
        numbers = values.numbers[ranges.numbers]
        count, positive = counts.at(self._groups.known[owners[asked]], numbers)
        met = np.bincount(asked, count > 0, len(items)) > 0
        found: dict[str, Source] = {}
        name = f"user_{field}_percent"
        if name in names:
            liked, all_ = (np.bincount(asked, some, len(items)) for some in (positive, count))
            share = self._shared.smoothed(liked, all_, self.user_share[owners])
            found[name] = words.percents(name, share, met)
        name = f"user_{field}_counts"
        if name in names:
            labelled = self._shared.has_labels
            texts: list[list[str]] = [[] for _ in range(len(items))]
            for item, number, n, p in zip(
                *(a.tolist() for a in (asked, numbers, count, positive)), strict=True
            ):
                if n:
                    told = values.names[number]
                    texts[item].append(f"{p} of {n} {told}" if labelled else f"{n} {told}")
            told_all: dict[tuple[str, ...], int] = {}
            codes = [told_all.setdefault(tuple(text), len(told_all)) for text in texts]
            empty: list[Value] = [text or None for text in told_all]
            found[name] = Source(np.asarray(codes, np.int64), empty, name)
        return found

    def _expected(self, candidates: Ranges, items: np.ndarray) -> np.ndarray:
        """What users will probably value candidates; NaN where nothing is known `[candidates]`."""
        bucket, groups, factors = self._bucket, self._groups, self._shared.factors
        assert factors is not None
        timeline = bucket.timeline
        found = np.full(len(items), np.nan)
        positions, windows = bucket.windows(groups.known)
        numbers = self._shared.item_number
        asked = np.where(
            timeline.first_place(items) < groups.place[candidates.owners], numbers[items], -1
        )
        window_items, window_values = numbers[bucket.item[positions]], bucket.worth[positions]
        epochs = epoch_of(timeline.count[groups.place], factors.schedule)
        epochs[windows.lengths == 0] = -1
        for epoch in np.unique(epochs[epochs >= 0]).tolist():
            fitted = factors.of(epoch)
            for group in np.flatnonzero(epochs == epoch).tolist():
                one = slice(candidates.low[group], candidates.high[group])
                window = slice(windows.low[group], windows.high[group])
                found[one] = fitted.expected(
                    asked[one], window_items[window], window_values[window]
                )
        return found
