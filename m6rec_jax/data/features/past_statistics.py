"""What all users did before any moment of a preparation, and what is left of it after the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from m6rec_jax.data.features.epochs import FittedFactors, Standings, WindowEntries, epoch_of
from m6rec_jax.data.features.past_events import Counts, ItemValues, running_sums
from m6rec_jax.data.features.statistics import Statistics, Totals
from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.data.features.value_factors import ValueFactors
from m6rec_jax.data.splitting.timeline import Timeline
from m6rec_jax.text.records import Item


class PastStatistics:
    """See the module; items are indices of the items table.

    Args:
      settings: what is counted.
      timeline: of all events.
      items: the items table.
      factors: folder with the fits of factors.

    Attributes:
      item_values: of each column of `by`.
      item_number: number of each item, in the order in which items came first `[items]`.
      fitted: the factors.
    """

    def __init__(
        self,
        settings: StatisticsSettings,
        timeline: Timeline,
        items: Sequence[Item],
        factors: Path,
    ) -> None:
        self.settings, self.timeline, self._num_items = settings, timeline, len(items)
        self.item_values = {field: ItemValues.of(items, field) for field in settings.by}
        first = timeline.first_place(np.arange(len(items)))
        self._by_number = np.argsort(first, kind="stable")
        self.item_number = np.argsort(self._by_number)
        self.fitted = FittedFactors(factors, timeline, settings.options)

    @cached_property
    def _standings(self) -> Standings:
        return Standings(self.timeline, self._num_items, self.settings)

    def overall(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of positive events, mean value, and how far values lie from it at places `[n]`."""
        timeline = self.timeline
        return timeline.share(places), timeline.mean(places), timeline.spread(places)

    def of_items(self, items: np.ndarray, places: np.ndarray) -> Counts:
        """What was counted of items at places `[n]`."""
        return self.timeline.of_items(items, places)

    def standing(
        self, kind: str, numbers: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many items are not higher than numbers of known items at places `[n]`, and of how
        many: 'counts' of events, or 'shares' liked.
        """
        return self._standings.standing(kind, numbers, self.timeline.count[places])

    def fits(self, places: np.ndarray) -> np.ndarray:
        """Numbers of the fits of factors that hold at places; -1 before the first `[n]`."""
        return epoch_of(self.timeline.count[places], self.fitted.schedule)

    def factors(self, fit: int) -> ValueFactors:
        """One of them."""
        return self.fitted.of(fit)

    def numbers(self, items: np.ndarray) -> np.ndarray:
        """Items by the order in which they came first, as factors number them `[n]`."""
        return self.item_number[items]

    def after_all(
        self,
        entries: WindowEntries | None,
        pairs: tuple[np.ndarray, np.ndarray],
        item_ids: Sequence[str],
        user_ids: Sequence[str],
    ) -> Statistics:
        """The statistics after the last event.

        Args:
          entries: of all windows; None where none are kept.
          pairs: of `PairCounts.to_arrays`, by numbers of items.
          item_ids, user_ids: in the order of the tables.
        """
        timeline, settings = self.timeline, self.settings
        end = len(timeline.time)
        counted = np.flatnonzero(timeline.counted)
        items = self._by_number[: len(np.unique(timeline.item[counted]))]
        holders, square = np.zeros(len(items), np.int64), np.zeros(len(items))
        if entries is not None:
            order = np.lexsort((entries.place, entries.item))
            holders = np.bincount(entries.item, minlength=len(items))
            starts = np.concatenate([[0], np.cumsum(holders)])
            square = running_sums(entries.difference[order] ** 2, starts)[starts[1:] - 1]
        _, first, user = np.unique(timeline.user[counted], return_index=True, return_inverse=True)
        # Users as they came first, and the events of each in order.
        by_user = counted[np.argsort(first[user], kind="stable")]
        first, lengths = np.unique(first[user], return_counts=True)
        fitted = self.fitted.of(-1) if settings.has_factors else ValueFactors.none(0)
        totals = Totals(
            int(timeline.count[end]),
            int(timeline.positive[end]),
            float(timeline.total[end]),
            float(timeline.square[end]),
            float(timeline.time[counted[-1]]),
            len(first),
            fitted.mean,
        )
        counts = timeline.of_items(items, np.full(len(items), end))
        values = [self.item_values[field].take(items) for field in settings.by]
        names = [pa.array(of.names, pa.string()).take(pa.array(of.numbers)) for of in values]
        ranks = Standings(timeline, self._num_items, settings, last=True).populations
        keys, of_pairs = pairs
        tables = {
            "items": {
                "item_id": pa.array(item_ids, pa.string()).take(pa.array(items)),
                **counts._asdict(),
                "holders": holders,
                "square": square,
            },
            "users": {
                "user_id": pa.array(user_ids, pa.string()).take(
                    pa.array(timeline.user[counted[first]])
                ),
                "events": lengths,
            },
            "user_events": {
                "item": self.item_number[timeline.item[by_user]].astype(np.int32),
                "time": timeline.time[by_user],
                "value": timeline.value[by_user],
                "positive": timeline.positive[by_user + 1] > timeline.positive[by_user],
            },
            "user_values": {
                "column": np.repeat(np.arange(len(values)), [len(of.numbers) for of in values]),
                "item": np.concatenate([np.zeros(0, int), *(of.owners for of in values)]),
                "name": pa.chunked_array(names, pa.string()),
            },
            **{kind: of_epochs[-1]._asdict() for kind, of_epochs in ranks.items()},
            "pairs": {"key": keys, "together": of_pairs[:, 0], "products": of_pairs[:, 1]},
            "factors": {
                "bias": fitted.item_bias,
                **{str(number): of for number, of in enumerate(fitted.item_factors.T)},
            },
        }
        return Statistics(settings, totals, {k: pa.table(v) for k, v in tables.items()})
