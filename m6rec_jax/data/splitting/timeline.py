"""What statistics may hold, in the order of time, as arrays on disk that processes share.

A *place* is a number of events of the timeline: the first so many. Whatever was known at a moment
is a question about the place `place_of(time)`, answered without folding the events before it: sums
over all events are kept at every place, those of an item at each of its events. Sums are made in
the order of events, as a fold over them would make them, so that no word depends on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from m6rec_jax.data.features.past_events import Counts, running_sums
from m6rec_jax.data.splitting.splits import STATISTICS_PARTS
from m6rec_jax.io.mapped_arrays import mapped_array, open_arrays

# Of each event: `counted` for everybody or for its user only (rows of other parts).
_EVENTS = {
    "time": np.float64,
    "user": np.int32,
    "item": np.int32,
    "value": np.float64,
    "counted": np.bool_,
}
# Of the first so many events.
_SUMS = {"count": np.int64, "positive": np.int64, "total": np.float64, "square": np.float64}


def parts_of_users(visible_parts: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Parts whose events count for their user only."""
    seen = {part for parts in visible_parts.values() for part in parts}
    return tuple(sorted(seen.difference(STATISTICS_PARTS)))


@dataclasses.dataclass(frozen=True)
class Timeline:
    """See the module. Make it with `write`, then `open` it in every process.

    Attributes:
      time, user, item, value, counted: of each event `[events]`; a missing value is 0.
      count, positive, total, square: of the events counted among the first so many `[events + 1]`:
        their number, positive ones, sum of values, sum of squared differences from the mean before.
      item_start: first and past-the-last number of each item's counted events `[items + 1]`.
      item_place: places of the counted events, by item, then in order `[counted]`.
      item_positive: positive ones before each of them, over all items `[counted + 1]`.
      item_total: sum of the item's values up to it, itself included `[counted]`.
      place_of_row: events of the timeline before each row of the events table `[rows]`.
    """

    time: np.ndarray
    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    counted: np.ndarray
    count: np.ndarray
    positive: np.ndarray
    total: np.ndarray
    square: np.ndarray
    item_start: np.ndarray
    item_place: np.ndarray
    item_positive: np.ndarray
    item_total: np.ndarray
    place_of_row: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Maps what `write` left."""
        return cls(*open_arrays(folder, (field.name for field in dataclasses.fields(cls))))

    @classmethod
    def write(
        cls,
        folder: Path,
        batches: Iterable[pa.RecordBatch],
        size: int,
        num_rows: int,
        num_items: int,
        at_least: float | None,
    ) -> Self:
        """Makes the arrays.

        Args:
          folder: exists.
          batches: events in the order of time and row, of the parts that statistics may hold.
          size: their number.
          num_rows: of the events table.
          num_items: of the items table.
          at_least: events with at least this value are positive; None where all are.
        """
        arrays = {
            name: _array(folder, name, kind, size + (name in _SUMS))
            for name, kind in (_EVENTS | _SUMS).items()
        }
        place_of_row = _array(folder, "place_of_row", np.int64, num_rows)
        for name in _SUMS:
            arrays[name][0] = 0
        start = 0
        for batch in batches:
            end = start + batch.num_rows
            columns = {
                name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names
            }
            values = columns["value"]
            counted = np.isin(columns["part"], STATISTICS_PARTS)
            liked = counted & (True if at_least is None else values >= at_least)
            values = np.nan_to_num(values)
            known = {**columns, "value": values, "counted": counted}
            for name in _EVENTS:
                arrays[name][start:end] = known[name]
            place_of_row[columns["row"]] = np.arange(start, end)

            def summed(name: str, terms: np.ndarray, start: int = start, end: int = end) -> None:
                sums = arrays[name]
                # One by one, in order: another order would round otherwise.
                sums[start + 1 : end + 1] = np.add.accumulate(np.append(sums[start], terms))[1:]

            summed("count", counted)
            summed("positive", liked)
            summed("total", np.where(counted, values, 0.0))
            before = _mean(arrays["total"][start:end], arrays["count"][start:end])
            summed("square", np.where(counted, (values - before) ** 2, 0.0))
            start = end
        _write_items(folder, arrays, num_items)
        return cls.open(folder)

    def place_of(self, times: np.ndarray) -> np.ndarray:
        """Places that hold all events strictly before moments `[n]`."""
        return np.searchsorted(self.time, times, side="left")

    def share(self, places: np.ndarray) -> np.ndarray:
        """Share of positive events at places `[n]`; 0 before the first."""
        return _mean(self.positive[places], self.count[places])

    def mean(self, places: np.ndarray) -> np.ndarray:
        """Mean value at places `[n]`; 0 before the first."""
        return _mean(self.total[places], self.count[places])

    def spread(self, places: np.ndarray) -> np.ndarray:
        """How far values lie from their mean (root mean square); 1 before two differ `[n]`."""
        square, count = self.square[places], self.count[places]
        return np.sqrt(np.where(square > 0, square / np.maximum(count, 1), 1.0))

    def of_items(self, items: np.ndarray, places: np.ndarray) -> Counts:
        """Counted events of items `[n]` at places `[n]`."""
        start = self.item_start[items]
        end = _search_within(self.item_place, start, self.item_start[items + 1], places)
        count = end - start
        positive = self.item_positive[end] - self.item_positive[start]
        total = np.where(count > 0, self.item_total[np.maximum(end - 1, 0)], 0.0)
        return Counts(count, positive, total)

    def first_place(self, items: np.ndarray) -> np.ndarray:
        """Place of each item's first counted event `[n]`; past all events for one that has none."""
        start = self.item_start[items]
        some = start < self.item_start[items + 1]
        first = self.item_place[np.minimum(start, len(self.item_place) - 1)]
        return np.where(some, first, len(self.time))


def _write_items(folder: Path, arrays: Mapping[str, np.ndarray], num_items: int) -> None:
    counted = np.flatnonzero(arrays["counted"])
    items = arrays["item"][counted]
    order = np.argsort(items, kind="stable")
    place = _array(folder, "item_place", np.int64, len(counted))
    place[:] = counted[order]
    start = _array(folder, "item_start", np.int64, num_items + 1)
    start[0] = 0
    start[1:] = np.cumsum(np.bincount(items, minlength=num_items))
    positive = _array(folder, "item_positive", np.int64, len(counted) + 1)
    positive[0] = 0
    positive[1:] = np.cumsum(arrays["positive"][place + 1] - arrays["positive"][place])
    total = _array(folder, "item_total", np.float64, len(counted))
    total[:] = running_sums(arrays["value"][place], start)


def _search_within(
    ordered: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """For each of `[n]`, where `wanted` belongs in `ordered[low:high]`: a binary search of all."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        below = open_ & (ordered[np.minimum(middle, len(ordered) - 1)] < wanted)
        low = np.where(below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), 0.0)


def _array(folder: Path, name: str, kind: type, size: int) -> np.ndarray:
    return mapped_array(folder / f"{name}.npy", kind, (size,))
