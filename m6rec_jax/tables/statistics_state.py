"""What `tables.statistics` counts: the incremental state behind the words, and its files."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.tables.pair_counts import DENSE_ITEMS, PairCounts
from m6rec_jax.tables.schema import DatasetSpec
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Event, Item

_FORMAT = "m6rec-statistics-2"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StatisticsOptions:
    """How statistics are computed; saved with them.

    Attributes:
      smoothing: shares and means are pulled towards the overall one as if by this many events.
      neighbours: whether to count pairs of items. Costs most of the time and memory of large
        catalogues: at most `2 * neighbour_window` pairs per event.
      neighbour_window: how many of a user's last items are paired with a new one.
      neighbour_smoothing: pulls the share of each pair towards the item's own.
      closest: how many items `user_closest_percent` averages.
      differences: whether to sum products of differences over pairs of items, where events have
        values. As costly again as `neighbours`.
      difference_smoothing: pulls the similarity of each pair towards zero.
      dense_items: up to this many items, pairs are kept as square arrays.
    """

    smoothing: float = 5.0
    neighbours: bool = True
    neighbour_window: int = 200
    neighbour_smoothing: float = 5.0
    closest: int = 10
    differences: bool = True
    difference_smoothing: float = 10.0
    dense_items: int = DENSE_ITEMS

    def __post_init__(self) -> None:
        for name in (
            "smoothing",
            "neighbour_smoothing",
            "neighbour_window",
            "closest",
            "difference_smoothing",
        ):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"StatisticsOptions.{name} must be positive, not {value}")


@dataclasses.dataclass(slots=True)
class UserState:
    """What is known of one user.

    Attributes:
      count, positive, value: events, positive ones, sum of values.
      by: for each column of `by`, value -> [events, positive ones].
      window: places of the user's last distinct items, oldest first.
      window_liked: whether the user liked each of them (at its first event in the window).
      window_difference: by how much the user's value was above the item's mean then.
    """

    count: int
    positive: int
    value: float
    by: tuple[dict[str, list[int]], ...]
    window: list[int] = dataclasses.field(default_factory=list)
    window_liked: list[bool] = dataclasses.field(default_factory=list)
    window_difference: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class ItemStates:
    """What is known of every item, by its place (the order in which items first occurred).

    Attributes:
      place: item id -> place.
      count, positive, value: events, positive ones, sum of values `[items]`.
      holders: how often the item entered a user's window `[items]`.
    """

    place: dict[str, int] = dataclasses.field(default_factory=dict)
    count: list[int] = dataclasses.field(default_factory=list)
    positive: list[int] = dataclasses.field(default_factory=list)
    value: list[float] = dataclasses.field(default_factory=list)
    holders: list[int] = dataclasses.field(default_factory=list)


class StatisticsState:
    """Counts over the events so far.

    Args:
      by: item columns by which a user's behaviour is counted.
      at_least: events with at least this value are positive; None where all are.
      has_values: whether events have values.
      options: see `StatisticsOptions`; None for gin's or the defaults.
    """

    def __init__(
        self,
        by: Sequence[str] = (),
        at_least: float | None = None,
        has_values: bool = False,
        options: StatisticsOptions | None = None,
    ) -> None:
        self.by = tuple(by)
        self.at_least = at_least
        self.has_values = has_values
        self.options = options or StatisticsOptions()
        self.count = 0
        self.positive = 0
        self.value = 0.0
        self.last_time = -math.inf
        self.items = ItemStates()
        self.users: dict[str, UserState] = {}
        # (acted on both and liked the column item, liked the row item too).
        self.pairs = PairCounts(self.options.dense_items)
        # (acted on both, sum of products of differences).
        self.agreements = PairCounts(self.options.dense_items, np.float32)
        # Sorted counts and shares liked of all items, as they were at the last refresh `[items]`.
        self.sorted_counts = np.zeros(0)
        self.sorted_shares = np.zeros(0)
        self.next_refresh = 1

    @classmethod
    def for_dataset(cls, spec: DatasetSpec, options: StatisticsOptions | None = None) -> Self:
        """Empty statistics for the data set that `spec` declares."""
        at_least = spec.label.at_least
        return cls(spec.statistics.by, at_least, spec.events.value is not None, options)

    @property
    def has_labels(self) -> bool:
        """Whether some events can be negative."""
        return self.at_least is not None

    @property
    def tells_differences(self) -> bool:
        """Whether products of differences are summed: asked for, and events have values."""
        return self.options.differences and self.has_values

    # ---- update

    def is_positive(self, event: Event) -> bool:
        """Whether an event counts as positive."""
        return self.at_least is None or (event.value is not None and event.value >= self.at_least)

    def update(self, event: Event, item: Item) -> None:
        """Counts the next event.

        Args:
          event: not earlier than the ones before.
          item: the item of the event, for its columns of `by`.

        Raises:
          DataError: the event is earlier than one that was counted before.
        """
        if event.time < self.last_time:
            raise DataError(
                f"an event of user {event.user_id!r} at {event.time} comes after one at "
                f"{self.last_time}: statistics take events in the order of time"
            )
        self.last_time = event.time
        overall = self.mean()
        liked = self.is_positive(event)
        value = 0.0 if event.value is None or math.isnan(event.value) else event.value
        self.count += 1
        self.positive += liked
        self.value += value

        items = self.items
        place = items.place.get(event.item_id)
        if place is None:
            place = items.place[event.item_id] = len(items.count)
            items.count.append(0)
            items.positive.append(0)
            items.value.append(0.0)
            items.holders.append(0)
        # Before this event counts: its own value must not pull the mean that it is compared with.
        difference = value - self.smoothed(items.value[place], items.count[place], overall)
        items.count[place] += 1
        items.positive[place] += liked
        items.value[place] += value

        user = self.users.get(event.user_id)
        if user is None:
            user = UserState(0, 0, 0.0, tuple({} for _ in self.by))
            self.users[event.user_id] = user
        user.count += 1
        user.positive += liked
        user.value += value
        for field, counts in zip(self.by, user.by, strict=True):
            for name in values_of(item, field):
                entry = counts.setdefault(name, [0, 0])
                entry[0] += 1
                entry[1] += liked
        if self.options.neighbours or self.tells_differences:
            self._update_pairs(user, place, liked, difference)
        if self.count >= self.next_refresh:
            self._refresh()

    def _update_pairs(self, user: UserState, place: int, liked: bool, difference: float) -> None:
        window = user.window
        if place in window:
            return
        if window:
            others = np.asarray(window)
            this = np.full(len(others), place)
            others_liked = np.asarray(user.window_liked)
            if self.options.neighbours:
                # (this item, item liked before) and, if this is liked, (any item before, this).
                rows, columns = this[others_liked], others[others_liked]
                both = np.full(len(rows), int(liked))
                if liked:
                    rows, columns = np.concatenate([rows, others]), np.concatenate([columns, this])
                    both = np.concatenate([both, others_liked])
                self.pairs.add(rows, columns, np.stack([np.ones_like(both), both], axis=1))
            if self.tells_differences:
                products = difference * np.asarray(user.window_difference)
                amounts = np.stack([np.ones_like(products), products], axis=1)
                self.agreements.add(this, others, amounts)
                self.agreements.add(others, this, amounts)
        window.append(place)
        user.window_liked.append(liked)
        user.window_difference.append(difference)
        self.items.holders[place] += 1
        if len(window) > self.options.neighbour_window:
            del window[0], user.window_liked[0], user.window_difference[0]

    def _refresh(self) -> None:
        """Ranks all items anew. At every event at first, then whenever 2% more events came."""
        counts = np.asarray(self.items.count, np.float64)
        self.sorted_counts = np.sort(counts)
        if self.has_labels:
            positive = np.asarray(self.items.positive, np.float64)
            self.sorted_shares = np.sort(self.smoothed(positive, counts, self.share()))
        self.next_refresh = self.count + max(1, self.count // 50)

    def share(self) -> float:
        """Share of positive events; 0 before the first."""
        return self.positive / self.count if self.count else 0.0

    def mean(self) -> float:
        """Mean value; 0 before the first."""
        return self.value / self.count if self.count else 0.0

    def smoothed(self, amount, count, towards):  # type: ignore[no-untyped-def]
        """Share or mean of numbers or arrays, as if `smoothing` more events had the overall one."""
        return (amount + self.options.smoothing * towards) / (count + self.options.smoothing)

    # ---- files

    def save(self, path: str | Path) -> None:
        """Writes the state to a folder of Parquet and JSON; an older one there is replaced."""
        path = Path(path)
        scratch = path.with_name(path.name + ".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        for name, table in self._tables().items():
            pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
        state = {name: getattr(self, name) for name in _SCALARS}
        settings = {"by": list(self.by), "at_least": self.at_least, "has_values": self.has_values}
        options = dataclasses.asdict(self.options)
        # No event yet: minus infinity is not JSON.
        state["last_time"] = None if math.isinf(self.last_time) else self.last_time
        raw = {"format": _FORMAT, "settings": settings, "options": options, "state": state}
        (scratch / "statistics.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")
        shutil.rmtree(path, ignore_errors=True)
        scratch.rename(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote: the same features, and the same after further updates.

        Raises:
          DataError: the folder is missing, of another format, or damaged.
        """
        path = Path(path)
        names = ("items", "users", "by", "pairs", "agreements", "ranks")
        for file in ("statistics.json", *(f"{name}.parquet" for name in names)):
            if not (path / file).is_file():
                raise DataError(
                    f"{path} holds no statistics ({file} is missing); `m6rec data prepare` "
                    "writes them"
                )
        try:
            raw = json.loads((path / "statistics.json").read_text("utf-8"))
            if raw.get("format") != _FORMAT:
                raise DataError(
                    f"{path}: format {raw.get('format')!r}, expected {_FORMAT!r}; prepare the "
                    "data set again"
                )
            found = cls(**raw["settings"], options=StatisticsOptions(**raw["options"]))
            for name in _SCALARS:
                setattr(found, name, raw["state"][name])
            if found.last_time is None:
                found.last_time = -math.inf
            found._fill({name: pq.read_table(path / f"{name}.parquet") for name in names})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as e:
            raise DataError(f"{path}: the statistics are damaged: {e}") from e
        return found

    def _tables(self) -> dict[str, pa.Table]:
        items, users = self.items, list(self.users.values())
        counted: list[tuple[Any, ...]] = [
            (place, column, name, *entry)
            for place, user in enumerate(users)
            for column, counts in enumerate(user.by)
            for name, entry in counts.items()
        ]
        names = ("count", "positive", "value")
        return {
            "items": pa.table(
                {
                    "item_id": pa.array(list(items.place), pa.string()),
                    "count": pa.array(items.count, pa.int64()),
                    "positive": pa.array(items.positive, pa.int64()),
                    "value": pa.array(items.value, pa.float64()),
                    "holders": pa.array(items.holders, pa.int64()),
                }
            ),
            "users": pa.table(
                {"user_id": pa.array(list(self.users), pa.string())}
                | {
                    name: pa.array([getattr(user, name) for user in users], kind)
                    for name, kind in zip(
                        names, (pa.int64(), pa.int64(), pa.float64()), strict=True
                    )
                }
                | {
                    "window": pa.array([u.window for u in users], pa.list_(pa.int32())),
                    "window_liked": pa.array([u.window_liked for u in users], pa.list_(pa.bool_())),
                    "window_difference": pa.array(
                        [u.window_difference for u in users], pa.list_(pa.float64())
                    ),
                }
            ),
            "by": pa.table(
                {
                    name: pa.array([row[index] for row in counted], kind)
                    for index, (name, kind) in enumerate(_BY_COLUMNS.items())
                }
            ),
            "pairs": _pairs_table(self.pairs),
            "agreements": _pairs_table(self.agreements),
            "ranks": pa.table(
                {
                    "count": pa.array([self.sorted_counts.tolist()]),
                    "share": pa.array([self.sorted_shares.tolist()]),
                }
            ),
        }

    def _fill(self, tables: dict[str, pa.Table]) -> None:
        columns: dict[str, dict[str, list[Any]]] = {
            name: tables[name].to_pydict() for name in ("items", "users", "by", "ranks")
        }
        of_items = columns["items"]
        self.items = ItemStates(
            {item_id: place for place, item_id in enumerate(of_items["item_id"])},
            *(of_items[name] for name in ("count", "positive", "value", "holders")),
        )
        of_users = columns["users"]
        names = ("count", "positive", "value", "window", "window_liked", "window_difference")
        for user_id, count, positive, value, *windows in zip(
            of_users["user_id"], *(of_users[name] for name in names), strict=True
        ):
            by: tuple[dict[str, list[int]], ...] = tuple({} for _ in self.by)
            self.users[user_id] = UserState(count, positive, value, by, *windows)
        users = list(self.users.values())
        for place, column, name, count, positive in zip(
            *(columns["by"][name] for name in _BY_COLUMNS), strict=True
        ):
            users[place].by[column][name] = [count, positive]
        for name, counts in (("pairs", self.pairs), ("agreements", self.agreements)):
            key, first, second = (tables[name].column(c).to_numpy() for c in _PAIR_COLUMNS)
            counts.load(key, np.stack([first, second], axis=1))
        self.sorted_counts = np.asarray(columns["ranks"]["count"][0], np.float64)
        self.sorted_shares = np.asarray(columns["ranks"]["share"][0], np.float64)


_SCALARS = ("count", "positive", "value", "last_time", "next_refresh")
_BY_COLUMNS = {
    "user": pa.int64(),
    "column": pa.int8(),
    "name": pa.string(),
    "count": pa.int64(),
    "positive": pa.int64(),
}


_PAIR_COLUMNS = ("key", "first", "second")


def _pairs_table(counts: PairCounts) -> pa.Table:
    keys, values = counts.to_arrays()
    return pa.table(dict(zip(_PAIR_COLUMNS, (keys, values[:, 0], values[:, 1]), strict=True)))


def values_of(item: Item, field: str) -> tuple[str, ...]:
    """The distinct values an item has in a column, as text."""
    value = item.attributes.get(field)
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(value))
    text = text_of(value)
    return (text,) if text else ()
