"""What is looked at again only when events have grown by some percent: standings, factors.

Each is a schedule of counts of events, and what was found at each of them. Between two of them,
what was found at the earlier one holds: it is small beside the events, and the same for all users.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from m6rec_jax.data.features.past_events import Ranges
from m6rec_jax.data.features.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.features.value_factors import ValueFactors
from m6rec_jax.data.splitting.timeline import Timeline
from m6rec_jax.io.mapped_arrays import open_arrays

# Events before the first fit of the factors, and the fewest between two fits.
FIRST_FIT = 10


def next_refresh(count: int) -> int:
    """After how many events popularity is looked at again: 2% more than `count`."""
    return count + max(1, count // 50)


def next_fit(count: int, growth: float) -> int:
    """After how many events factors are fitted anew that were fitted after `count`."""
    return count + max(FIRST_FIT, math.ceil(growth * count))


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


class Population(NamedTuple):
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

    def standing(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many items are not higher than `numbers` `[n]`, and of how many."""
        # A share must not fall below itself by the rounding of another order of operations.
        place = np.searchsorted(self.values, numbers + 1e-12, side="right")
        size = np.full(len(numbers), self.not_higher[-1])
        return np.concatenate([[0], self.not_higher])[place], size


class Standings:
    """How items stand by counts and by shares liked, looked at anew when events grew by 2%.

    Args:
      timeline: of all events.
      num_items: of the items table.
      settings: what is counted.
      last: look at the last refresh alone.

    Attributes:
      populations: of 'counts' and 'shares', for each epoch.
    """

    def __init__(
        self, timeline: Timeline, num_items: int, settings: StatisticsSettings, last: bool = False
    ) -> None:
        self._schedule = schedule(1, next_refresh, int(timeline.count[-1]))
        if last:
            self._schedule = self._schedule[-1:]
        self.populations: dict[str, list[Population]] = {"counts": [], "shares": []}
        count, positive = np.zeros((2, num_items), np.int64)
        start = 0
        for place in np.searchsorted(timeline.count, self._schedule).tolist():
            new = np.flatnonzero(timeline.counted[start:place]) + start
            liked = timeline.positive[new + 1] > timeline.positive[new]
            count += np.bincount(timeline.item[new], minlength=num_items)
            positive += np.bincount(timeline.item[new[liked]], minlength=num_items)
            start, known = place, count > 0
            overall = float(timeline.positive[place]) / float(timeline.count[place])
            shares = settings.smoothed(positive[known], count[known], overall)
            self.populations["counts"].append(Population.of(count[known].astype(np.float64)))
            self.populations["shares"].append(Population.of(shares))

    def standing(
        self, kind: str, numbers: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many items are not higher than numbers `[n]`, and of how many, after `counts` `[n]`
        events, 1 or more.
        """
        epochs = epoch_of(counts, self._schedule)
        standing = np.zeros((2, len(numbers)), np.int64)
        for epoch in np.unique(epochs).tolist():
            some = epochs == epoch
            standing[:, some] = self.populations[kind][epoch].standing(numbers[some])
        return standing[0], standing[1]


@dataclasses.dataclass(frozen=True)
class WindowEntries:
    """Events whose item entered its user's window, by user (as they came first), then in order.

    Arrays on disk that processes share: `write` them, then `open` them everywhere.

    Attributes:
      user, item: their numbers, in the order in which they came first `[entries]`.
      place: of the event in the timeline `[entries]`.
      forgotten: place of the event that made the window forget it `[entries]`.
      value: that the user gave the item `[entries]`.
      difference: of the value from the mean of all before `[entries]`.
      low: the window that it entered was that of the entries from this one up to it `[entries]`.
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
        places: Sequence[np.ndarray],
        timeline: Timeline,
        item_number: np.ndarray,
        window: int,
    ) -> Self:
        """Makes the arrays.

        Args:
          folder: must not exist.
          places: of `UserBucket.places_of_entries`, of all buckets.
          timeline: of all users.
          item_number: number of each item, in the order in which items came first `[items]`.
          window: how many of a user's last distinct items are remembered.
        """
        place = np.concatenate(places)
        low = np.flatnonzero(np.append(True, np.diff(timeline.user[place]) != 0))
        high = np.append(low[1:], len(place))
        by_user = np.argsort(place[low])
        users = Ranges(low[by_user], high[by_user])
        place, user = place[users.numbers], users.owners
        forgotten = np.full(len(place), np.iinfo(np.int64).max)
        same = user[:-window] == user[window:]
        forgotten[:-window][same] = place[window:][same]
        by_place, value = np.argsort(place), timeline.value[place]
        arrays = {
            "user": user.astype(np.int32),
            "item": item_number[timeline.item[place]].astype(np.int32),
            "place": place,
            "forgotten": forgotten,
            "value": value,
            "difference": value - timeline.mean(place),
            "low": np.maximum(users.offsets[user], np.arange(len(user)) - window),
            "by_place": by_place,
            "places": place[by_place],
        }
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return cls.open(folder)

    def at(self, place: int) -> np.ndarray:
        """Which entries all windows had at a place of the timeline `[entries]` bool."""
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
    """The factors of every fit, in a folder that all processes see.

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
        timeline, factors, done = self._timeline, ValueFactors.none(self._options.factors), 0
        if past is not None and len(past.factors.item_bias):
            factors = past.factors
            done = int(np.searchsorted(self.schedule, past.num_events, side="right"))
            np.savez(self._folder / f"{done - 1}.npz", **factors._asdict())
        first = np.sort(timeline.first_place(np.arange(num_items)))
        places = np.searchsorted(timeline.count, self.schedule[done:]).tolist()
        for number, place in enumerate(places, done):
            inside = entries.at(place)
            users, items = entries.user[inside], entries.item[inside]
            # Users are numbered as they came first, and so are items.
            known = int(np.searchsorted(first, place))
            factors = factors.fit(
                users, items, entries.value[inside], known, self._options.smoothing
            )
            np.savez(self._folder / f"{number}.npz", **factors._asdict())

    def of(self, epoch: int) -> ValueFactors:
        """Of one fit; -1 for the last one, or none if there was none."""
        if not len(self.schedule):
            return ValueFactors.none(self._options.factors)
        with np.load(self._folder / f"{epoch % len(self.schedule)}.npz") as arrays:
            return ValueFactors(**arrays)._replace(mean=float(arrays["mean"]))
