"""What is looked at again only when events have grown by some percent: standings, factors.

Each is a schedule of counts of events, and what was found at each of them. Between two of them,
what was found at the earlier one holds: it is small beside the events, and handed to all buckets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from m6rec_jax.data.statistics_state import (
    FACTOR_REGULARIZATION,
    FIRST_FIT,
    StatisticsOptions,
    next_fit,
    next_refresh,
)
from m6rec_jax.data.timeline import Timeline
from m6rec_jax.data.user_bucket import Ranges
from m6rec_jax.data.value_factors import ValueFactors
from m6rec_jax.io.mapped_arrays import open_arrays


def schedule(first: int, following: Callable[[int], int], last: int) -> np.ndarray:
    """Counts up to `last`, each after the one before; int64."""
    counts = []
    while first <= last:
        counts.append(first)
        first = following(first)
    return np.asarray(counts, np.int64)


def epoch_of(counts: np.ndarray, schedule: np.ndarray) -> np.ndarray:
    """The number of the epoch that counts `[n]` of events lie in; -1 before the first."""
    return np.searchsorted(schedule, counts, side="right") - 1


@dataclasses.dataclass(frozen=True)
class Population:
    """Numbers of all items that were known at a moment.

    Attributes:
      values: the distinct ones, ascending.
      not_higher: how many items have each or a lower one.
    """

    values: np.ndarray
    not_higher: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> Population:
        """Args: numbers: one for each item."""
        values, counts = np.unique(numbers, return_counts=True)
        return cls(values, np.cumsum(counts))

    @property
    def size(self) -> int:
        """Number of items."""
        return int(self.not_higher[-1])

    def standing(self, numbers: np.ndarray) -> np.ndarray:
        """How many items are not higher than `numbers` `[n]`."""
        # A share must not fall below itself by the rounding of another order of operations.
        place = np.searchsorted(self.values, numbers + 1e-12, side="right")
        return np.concatenate([[0], self.not_higher])[place]


@dataclasses.dataclass(frozen=True)
class Standings:
    """Counts and shares liked of all items, as of every refresh of `StatisticsState`.

    Attributes:
      schedule: counts of events at which they were looked at `[epochs]`.
      counts, shares: for each epoch; no shares where all events are positive.
    """

    schedule: np.ndarray
    counts: Sequence[Population]
    shares: Sequence[Population]

    @classmethod
    def of(
        cls,
        timeline: Timeline,
        num_items: int,
        smoothing: float,
        labelled: bool,
        *,
        last: bool = False,
    ) -> Standings:
        """Looks at all items at every refresh of a timeline, or at the `last` one alone."""
        counts_of_all = schedule(1, next_refresh, int(timeline.count[-1]))
        found = cls(counts_of_all[-1:] if last else counts_of_all, [], [])
        places = np.searchsorted(timeline.count, found.schedule)
        count, positive = np.zeros(num_items, np.int64), np.zeros(num_items, np.int64)
        start = 0
        counts, shares = [], []
        for place in places.tolist():
            new = np.flatnonzero(timeline.counted[start:place]) + start
            liked = timeline.positive[new + 1] > timeline.positive[new]
            count += np.bincount(timeline.item[new], minlength=num_items)
            positive += np.bincount(timeline.item[new[liked]], minlength=num_items)
            start = place
            known = count > 0
            counts.append(Population.of(count[known].astype(np.float64)))
            if labelled:
                share = float(timeline.positive[place]) / float(timeline.count[place])
                smoothed = (positive[known] + smoothing * share) / (count[known] + smoothing)
                shares.append(Population.of(smoothed))
        return dataclasses.replace(found, counts=counts, shares=shares)

    def standing(
        self, populations: Sequence[Population], numbers: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many items are not higher than numbers `[n]`, and of how many, after `counts` `[n]`
        events, 1 or more.
        """
        epochs = epoch_of(counts, self.schedule)
        not_higher, size = np.zeros(len(numbers), np.int64), np.ones(len(numbers), np.int64)
        for epoch in np.unique(epochs).tolist():
            mask = epochs == epoch
            not_higher[mask] = populations[epoch].standing(numbers[mask])
            size[mask] = populations[epoch].size
        return not_higher, size


@dataclasses.dataclass(frozen=True)
class WindowEntries:
    """Events whose item entered its user's window, by user (as they came first), then in order.

    Arrays on disk that processes share: `write` them, then `open` them everywhere.

    Attributes:
      user: number of the user, in the order in which users came first `[entries]`.
      item: number of the item, in the order in which items came first `[entries]`.
      place: of the event in the timeline `[entries]`.
      forgotten: place of the event that made the window forget it `[entries]`.
      value: that the user gave the item `[entries]`.
      difference: of the value from the mean of all before `[entries]`.
      low: the window that it entered held the entries from this one up to it `[entries]`.
      by_place: numbers of the entries in the order of places `[entries]`.
      places: in this order `[entries]`.
    """

    user: np.ndarray
    item: np.ndarray
    place: np.ndarray
    forgotten: np.ndarray
    value: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    by_place: np.ndarray
    places: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Maps what `write` left."""
        return cls(*open_arrays(folder, (field.name for field in dataclasses.fields(cls))))

    @classmethod
    def write(
        cls,
        folder: Path,
        tables: Sequence[pa.Table],
        timeline: Timeline,
        item_number: np.ndarray,
        window: int,
    ) -> Self:
        """Makes the arrays, one after the other.

        Args:
          folder: must not exist.
          tables: of `user_states.entries_of`, of all buckets.
          timeline: of all users.
          item_number: number of each item, in the order in which items came first `[items]`.
          window: how many of a user's last distinct items are remembered.
        """
        folder.mkdir()

        def column(name: str) -> np.ndarray:
            return np.concatenate([table.column(name).to_numpy() for table in tables])

        # Of a user, all entries follow each other, the first one first.
        users = column("user")
        low = np.flatnonzero(np.append(True, np.diff(users) != 0))
        high = np.append(low[1:], len(users))
        del users
        by_user = np.argsort(column("place")[low])
        users_of = Ranges(low[by_user], high[by_user])
        order, user = users_of.numbers, users_of.owners
        start = users_of.offsets[:-1]

        def save(name: str, array: np.ndarray, kind: type) -> None:
            np.save(folder / f"{name}.npy", array.astype(kind))

        save("user", user, np.int32)
        save("low", np.maximum(start[user], np.arange(len(user)) - window), np.int64)
        save("item", item_number[column("item")[order]], np.int32)
        save("forgotten", column("forgotten")[order], np.int64)
        value, place = column("value")[order], column("place")[order]
        save("value", value, np.float64)
        save("place", place, np.int64)
        save("difference", value - timeline.mean(place), np.float64)
        by_place = np.argsort(place)
        save("by_place", by_place, np.int64)
        save("places", place[by_place], np.int64)
        return cls.open(folder)

    def at(self, place: int) -> np.ndarray:
        """Which entries all windows held at a place of the timeline `[entries]` bool."""
        return (self.place < place) & (self.forgotten >= place)


class PastCounts(NamedTuple):
    """What an update need not count again.

    Attributes:
      num_events: the first so many events of the timeline are counted in it.
      pairs: of `PairCounts.to_arrays`, by numbers of items.
      factors: of the last fit.
    """

    num_events: int
    pairs: tuple[np.ndarray, np.ndarray]
    factors: ValueFactors


class FittedFactors:
    """The factors of every fit of `StatisticsState`, on disk.

    Args:
      folder: where `fit` puts them; exists then.
      timeline: of all events.
      options: of the statistics.

    Attributes:
      schedule: counts of events of the fits `[fits]`.
    """

    def __init__(self, folder: Path, timeline: Timeline, options: StatisticsOptions) -> None:
        self._folder, self._timeline, self._options = folder, timeline, options
        self.schedule = schedule(
            FIRST_FIT,
            lambda count: next_fit(count, options.factor_growth),
            int(timeline.count[-1]),
        )

    def fit(self, entries: WindowEntries, num_items: int, past: PastCounts | None = None) -> None:
        """Fits them, each starting from the one before; not again those of the past.

        Args:
          entries: of all users.
          num_items: of the items table.
          past: of an update.
        """
        timeline, counts = self._timeline, self.schedule
        factors, done = self._new(), 0
        if past is not None and past.factors.fitted:
            factors = past.factors
            done = int(np.searchsorted(counts, past.num_events, side="right"))
            self._save(done - 1, factors)
        first = np.sort(timeline.first_place(np.arange(num_items)))
        places = np.searchsorted(timeline.count, counts[done:]).tolist()
        for number, place in enumerate(places, done):
            held = entries.at(place)
            users, items = entries.user[held], entries.item[held]
            # Users are numbered as they came first, and so are items.
            factors.fit_entries(
                users,
                items,
                entries.value[held],
                int(users.max()) + 1,
                int(np.searchsorted(first, place)),
            )
            self._save(number, factors)

    def _save(self, number: int, factors: ValueFactors) -> None:
        np.savez(
            self._folder / f"{number}.npz",
            mean=factors.mean,
            bias=factors.item_bias,
            factors=factors.item_factors,
        )

    def of(self, epoch: int) -> ValueFactors:
        """Of one fit; -1 for the last one, or none if there was none."""
        found = self._new()
        if len(self.schedule):
            with np.load(self._folder / f"{epoch % len(self.schedule)}.npz") as arrays:
                found.mean = float(arrays["mean"])
                found.item_bias, found.item_factors = arrays["bias"], arrays["factors"]
        return found

    def _new(self) -> ValueFactors:
        return ValueFactors(self._options.factors, self._options.smoothing, FACTOR_REGULARIZATION)
