"""What was known at any moment, as sums over the events in the order of time.

A *place* is a number of events of the timeline: the first so many. Whatever was known at a moment
is a question about the place `place_of(time)`: sums over all events are kept at every place, those
of an item at each of its events. Sums are made one by one in the order of events: another order
would round otherwise, and change a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from m6rec_jax.data.splitting.splits import STATISTICS_PARTS
from m6rec_jax.io.mapped_arrays import mapped_array, open_arrays


@dataclasses.dataclass(frozen=True)
class MappedArrays:
    """Base of dataclasses of arrays: one process saves them, and every process opens them."""

    def save(self, folder: Path) -> None:
        """Writes a new folder."""
        folder.mkdir()
        for field in dataclasses.fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Maps what `save` wrote."""
        return cls(*open_arrays(folder, (field.name for field in dataclasses.fields(cls))))


class Counts(NamedTuple):
    """Number of events, of positive ones, and sum of their values. All `[n]`."""

    events: np.ndarray
    positive: np.ndarray
    value: np.ndarray


def parts_of_users(visible_parts: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Parts whose events count for their user only."""
    seen = {part for parts in visible_parts.values() for part in parts}
    return tuple(sorted(seen.difference(STATISTICS_PARTS)))


@dataclasses.dataclass(frozen=True)
class Timeline(MappedArrays):
    """See the module.

    Attributes:
      time, user, item, value, counted: of each event `[events]`; a missing value is 0. Events that
        are not `counted` for everybody are rows of other parts, and count for their user only.
      count, positive, total, square: of the events counted among the first so many `[events + 1]`:
        their number, positive ones, sum of values, sum of squared differences from the mean before.
      item_start: first and past-the-last number of each item's counted events `[items + 1]`.
      item_key: `item * (events + 1) + place` of the counted events, ascending `[counted]`.
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
    item_key: np.ndarray
    item_positive: np.ndarray
    item_total: np.ndarray
    place_of_row: np.ndarray

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
        """Makes the sums, in files of a new folder.

        `batches` of the columns row, user, item, time, value (NaN for none), part are in the order
        of time and row, and have `size` events of the parts that statistics may hold. Events with
        at least the value `at_least` are positive; None where all are.
        """
        folder.mkdir()
        kinds = {"time": float, "user": np.int32, "item": np.int32, "value": float, "counted": bool}
        events = {n: mapped_array(folder / f"{n}.npy", kind, (size,)) for n, kind in kinds.items()}
        whole = np.int32 if size < 2**31 else np.int64
        place_of_row = mapped_array(folder / "place_of_row.npy", whole, (num_rows,))
        end = 0
        for batch in batches:
            start, end = end, end + len(batch)
            columns = {name: batch[name].to_numpy() for name in batch.schema.names}
            columns["counted"] = np.isin(columns["part"], STATISTICS_PARTS)
            for name, of_events in events.items():
                of_events[start:end] = columns[name]
            place_of_row[columns["row"]] = np.arange(start, end)
        _, _, item, value, counted = events.values()
        liked = counted & (True if at_least is None else value >= at_least)
        np.nan_to_num(value, copy=False)

        def save(name: str, array: np.ndarray) -> np.ndarray:
            np.save(folder / f"{name}.npy", array)
            return array

        save("positive", sums_before(liked, whole))
        count = save("count", sums_before(counted, whole))
        total = save("total", sums_before(np.where(counted, value, 0.0)))
        difference = value - _mean(total[:-1], count[:-1])
        save("square", sums_before(np.where(counted, difference**2, 0.0)))
        del count, total, difference
        places = np.flatnonzero(counted)
        places = places[np.argsort(item[places], kind="stable")]
        of_items = np.bincount(item[places], minlength=num_items)
        starts = save("item_start", sums_before(of_items, whole))
        save("item_key", item[places].astype(np.int64) * (size + 1) + places)
        save("item_positive", sums_before(liked[places], whole))
        save("item_total", running_sums(value[places], starts))
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
        keys = items.astype(np.int64) * (len(self.time) + 1) + places
        end = np.searchsorted(self.item_key, keys)
        count = end - start
        positive = np.subtract(self.item_positive[end], self.item_positive[start], dtype=np.int64)
        total = np.where(count > 0, self.item_total[np.maximum(end - 1, 0)], 0.0)
        return Counts(count, positive, total)

    @cached_property
    def first_place(self) -> np.ndarray:
        """Place of each item's first counted event `[items]`; past all for one that has none."""
        size, starts = len(self.time), self.item_start
        first = np.full(len(starts) - 1, size)
        counted = starts[1:] > starts[:-1]
        first[counted] = self.item_key[starts[:-1][counted]] % (size + 1)
        return first


def schedule(first: int, following: Callable[[int], int], last: int) -> np.ndarray:
    """Counts up to `last`, each after the one before; int64.

    Between two of them, what was found at the earlier one holds.
    """
    counts = []
    while first <= last:
        counts.append(first)
        first = following(first)
    return np.asarray(counts, np.int64)


def epoch_of(counts: np.ndarray, schedule: np.ndarray) -> np.ndarray:
    """The number of the epoch that counts `[n]` of events lie in; -1 before the first."""
    return np.searchsorted(schedule, counts, side="right") - 1


def next_refresh(count: int) -> int:
    """After how many events popularity is looked at again: 2% more than `count`."""
    return count + max(1, count // 50)


def running_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of `values` `[n]` up to each, itself included, within segments that begin at `starts`,
    the last of which is `n` `[segments + 1]`.
    """
    sums = np.empty(len(values))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if start < end:
            np.add.accumulate(values[start:end], out=sums[start:end])
    return sums


def sums_before(terms: np.ndarray, kind: type[np.generic] | None = None) -> np.ndarray:
    """Sums of the terms `[n]` before each, and of all `[n + 1]`; `kind` None is 64 bits wide."""
    sums = np.zeros(len(terms) + 1, kind or np.result_type(terms, np.int64))
    np.cumsum(terms, out=sums[1:])
    return sums


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), 0.0)
