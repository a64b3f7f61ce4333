"""What is known of the groups of a bucket, as `features.Features` asks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from m6rec_jax.data.epochs import FittedFactors, Standings, epoch_of
from m6rec_jax.data.features import Counts, Features, ValuesMet
from m6rec_jax.data.statistics_state import StatisticsOptions, StatisticsSettings, values_of
from m6rec_jax.data.user_bucket import Groups, Ranges, UserBucket
from m6rec_jax.text.records import Item


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


class GroupFeatures(Features[np.ndarray]):
    """Statistics of users and items for the groups of a view; candidates are indices of items.

    Args:
      bucket: of the groups.
      groups: that are asked about.
      shared: see there.
    """

    def __init__(self, bucket: UserBucket, groups: Groups, shared: SharedStatistics) -> None:
        self._bucket, self._groups, self._shared = bucket, groups, shared
        self._timeline, place = bucket.timeline, groups.place
        overall = (self._timeline.share(place), self._timeline.mean(place))
        users = bucket.counts(groups.known)
        super().__init__(shared, *overall, self._timeline.spread(place), users)

    def item_counts(self, items: np.ndarray, owners: np.ndarray) -> Counts:
        return Counts(*self._timeline.of_items(items, self._groups.place[owners]))

    def standings(
        self, kind: str, numbers: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self._shared.standings is not None
        populations = getattr(self._shared.standings, kind)
        counts = self._timeline.count[self._groups.place[owners]]
        return self._shared.standings.standing(populations, numbers, counts)

    def times_had(self, items: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        times, last = self._bucket.times_had(self._groups.known[owners], items)
        time = self._bucket.time
        return times, time[self._groups.rows.low][owners] - time[last]

    def values_met(self, field: str, items: np.ndarray, owners: np.ndarray) -> ValuesMet:
        values = self._shared.item_values[self._shared.by.index(field)]
        ranges = values.ranges(items)
        candidate, numbers = ranges.owners, values.numbers[ranges.numbers]
        known = self._groups.known[owners[candidate]]
        counts = ValueCounts(self._bucket, values).at(known, numbers)
        return ValuesMet(candidate, [values.names[n] for n in numbers.tolist()], *counts)

    def expected(self, items: np.ndarray, owners: np.ndarray) -> np.ndarray:
        bucket, groups, factors = self._bucket, self._groups, self._shared.factors
        assert factors is not None
        found = np.full(len(items), np.nan)
        positions, windows = bucket.windows(groups.known)
        numbers = self._shared.item_number
        known = self._timeline.first_place(items) < groups.place[owners]
        asked = np.where(known, numbers[items], -1)
        window_items, window_values = numbers[bucket.item[positions]], bucket.worth[positions]
        ends = np.searchsorted(owners, np.arange(len(groups) + 1))
        epochs = epoch_of(self._timeline.count[groups.place], factors.schedule)
        epochs[windows.lengths == 0] = -1
        for epoch in np.unique(epochs[epochs >= 0]).tolist():
            fitted = factors.of(epoch)
            for group in np.flatnonzero(epochs == epoch).tolist():
                one = slice(ends[group], ends[group + 1])
                window = slice(windows.low[group], windows.high[group])
                found[one] = fitted.expected(
                    asked[one], window_items[window], window_values[window]
                )
        return found
