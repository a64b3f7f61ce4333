"""What all users did before any moment of a preparation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.data.features.timeline import Counts, Timeline, epoch_of, next_refresh, schedule
from m6rec_jax.data.features.user_events import ItemValues
from m6rec_jax.data.features.value_factors import FittedFactors, ValueFactors
from m6rec_jax.text.records import Item


class Population(NamedTuple):
    """Numbers of all items known at a moment: the distinct ones, ascending, and how many items have
    each or a lower one.
    """

    values: np.ndarray
    not_higher: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> Population:
        """Args: numbers: one for each item."""
        values, counts = np.unique(numbers, return_counts=True)
        return cls(values, np.cumsum(counts))

    def standing(self, numbers: np.ndarray) -> np.ndarray:
        """How many items are not higher than `numbers` `[n]`, and of how many `[2, n]`."""
        # A share must not fall below itself by the rounding of another order of operations.
        place = np.searchsorted(self.values, numbers + 1e-12, side="right")
        not_higher = np.append(0, self.not_higher)[place]
        return np.stack([not_higher, np.full(len(numbers), self.not_higher[-1])])


class PastStatistics:
    """See the module; items are indices of the items table.

    Attributes:
      item_values: of each column of `by`.
      item_number: number of each item, in the order in which items came first `[items]`.
      fitted: the factors, in the folder `factors`.
    """

    def __init__(
        self,
        settings: StatisticsSettings,
        timeline: Timeline,
        items: Sequence[Item],
        factors: Path,
    ) -> None:
        self.settings, self.timeline = settings, timeline
        self.item_values = {field: ItemValues.of(items, field) for field in settings.by}
        self.item_number = np.argsort(np.argsort(timeline.first_place, kind="stable"))
        self.fitted = FittedFactors(factors, timeline, settings.options)
        self._refreshes = schedule(1, next_refresh, int(timeline.count[-1]))
        self._refresh_places = np.searchsorted(timeline.count, self._refreshes)

    def overall(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of positive events, mean value, and how far values lie from it at places `[n]`."""
        timeline = self.timeline
        return timeline.share(places), timeline.mean(places), timeline.spread(places)

    def of_items(self, items: np.ndarray, places: np.ndarray) -> Counts:
        """What was counted of items at places `[n]`."""
        return self.timeline.of_items(items, places)

    def standing(self, kind: str, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How many items are not higher than numbers of known items at places `[n]`, and of how
        many `[2, n]`: 'counts' of events, or 'shares' liked, when events last grew by 2%.
        """
        epochs = epoch_of(self.timeline.count[places], self._refreshes)
        standing = np.zeros((2, len(numbers)), np.int64)
        for epoch in np.unique(epochs).tolist():
            some = epochs == epoch
            standing[:, some] = self._populations[epoch][kind].standing(numbers[some])
        return standing

    @cached_property
    def _populations(self) -> list[dict[str, Population]]:
        return list(map(self.population, range(len(self._refreshes))))

    def population(self, epoch: int) -> dict[str, Population]:
        """The numbers that items are compared by in one of the epochs; -1: the last one."""
        timeline, place = self.timeline, self._refresh_places[epoch]
        items = np.arange(len(timeline.item_start) - 1)
        counts = timeline.of_items(items, place)
        known = counts.events > 0
        events, positive, _ = (of[known] for of in counts)
        shares = self.settings.smoothed(positive, events, timeline.share(place))
        return {"counts": Population.of(events.astype(float)), "shares": Population.of(shares)}

    def factors(self, places: np.ndarray) -> Iterator[tuple[ValueFactors, np.ndarray]]:
        """The fits of factors, each with the numbers of the places at which it holds."""
        epochs = epoch_of(self.timeline.count[places], self.fitted.schedule)
        for epoch in np.unique(epochs[epochs >= 0]).tolist():
            yield self.fitted.of(epoch), np.flatnonzero(epochs == epoch)

    def numbers(self, items: np.ndarray) -> np.ndarray:
        """Items by the order in which they came first, as factors number them `[n]`."""
        return self.item_number[items]
