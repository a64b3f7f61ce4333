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

# Raise the number when the same events give other words, too: then text is rendered anew.
FORMAT = "m6rec-statistics-6"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StatisticsOptions:
    """How statistics are computed; saved with them.

    Attributes:
      smoothing: shares and means are pulled towards the overall one as if by this many events.
      neighbours: whether to count pairs of items. Costs most of the time and memory of large
        catalogues: at most `2 * neighbour_window` pairs per event.
      neighbour_window: how many of a user's last items are paired with a new one.
      neighbour_smoothing: pulls how much likelier one item makes another towards "no likelier".
      similarity_smoothing: pulls the similarity of each pair of items towards zero, in the unit of
        squared values.
      dense_items: up to this many items, pairs are kept as square arrays.
    """

    smoothing: float = 5.0
    neighbours: bool = True
    neighbour_window: int = 200
    neighbour_smoothing: float = 5.0
    similarity_smoothing: float = 10.0
    dense_items: int = DENSE_ITEMS

    def __post_init__(self) -> None:
        for name in (
            "smoothing",
            "neighbour_smoothing",
            "neighbour_window",
            "similarity_smoothing",
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
      window_value: the value the user gave each of them (at its first event in the window).
      window_difference: by how much that was above the mean of all events then.
    """

    count: int
    positive: int
    value: float
    by: tuple[dict[str, list[int]], ...]
    window: list[int] = dataclasses.field(default_factory=list)
    window_value: list[float] = dataclasses.field(default_factory=list)
    window_difference: list[float] = dataclasses.field(default_factory=list)

    def copy(self) -> UserState:
        """A copy that can be counted on by itself."""
        return UserState(
            self.count,
            self.positive,
            self.value,
            tuple({name: list(entry) for name, entry in counts.items()} for counts in self.by),
            list(self.window),
            list(self.window_value),
            list(self.window_difference),
        )

    def remember(self, place: int, value: float, difference: float, limit: int) -> None:
        """Appends an item to the window, which forgets its oldest one beyond `limit`."""
        self.window.append(place)
        self.window_value.append(value)
        self.window_difference.append(difference)
        if len(self.window) > limit:
            del self.window[0], self.window_value[0], self.window_difference[0]


@dataclasses.dataclass(slots=True)
class ItemStates:
    """What is known of every item, by its place (the order in which items first occurred).

    Attributes:
      place: item id -> place.
      count, positive, value: events, positive ones, sum of values `[items]`.
      holders: how often the item entered a user's window `[items]`.
      square: sum of squared differences of the values that entered windows `[items]`.
    """

    place: dict[str, int] = dataclasses.field(default_factory=dict)
    count: list[int] = dataclasses.field(default_factory=list)
    positive: list[int] = dataclasses.field(default_factory=list)
    value: list[float] = dataclasses.field(default_factory=list)
    holders: list[int] = dataclasses.field(default_factory=list)
    square: list[float] = dataclasses.field(default_factory=list)

    def place_of(self, item_id: str) -> int:
        """The place of an item, a new one if need be."""
        place = self.place.get(item_id)
        if place is None:
            place = self.place[item_id] = len(self.count)
            for counts in (self.count, self.positive, self.holders):
                counts.append(0)
            for sums in (self.value, self.square):
                sums.append(0.0)
        return place


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
        self.square = 0.0
        # Of all events, and of those that are counted for everybody (what `save` keeps).
        self.last_time = self.last_counted_time = -math.inf
        self.items = ItemStates()
        self.users: dict[str, UserState] = {}
        # The users of whom more is known than the items are told of, see `update`.
        self.users_ahead: dict[str, UserState] = {}
        # (users who acted on both, sum over them of the products of their differences).
        self.pairs = PairCounts(self.options.dense_items)
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

    # ---- update

    def is_positive(self, event: Event) -> bool:
        """Whether an event counts as positive."""
        return self.at_least is None or (event.value is not None and event.value >= self.at_least)

    def update(self, event: Event, item: Item, *, of_user_only: bool = False) -> None:
        """Counts the next event.

        Args:
          event: not earlier than the ones before.
          item: the item of the event, for its columns of `by`.
          of_user_only: the event tells of its user, and nothing of the item: it counts in what is
            asked `ahead`, and not otherwise. So is an event of the validation part known to the
            same user's rows of the test part, and to nobody else.

        Raises:
          DataError: the event is earlier than one that was counted before.
        """
        if event.time < self.last_time:
            raise DataError(
                f"an event of user {event.user_id!r} at {event.time} comes after one at "
                f"{self.last_time}: statistics take events in the order of time"
            )
        self.last_time = event.time
        value = 0.0 if event.value is None or math.isnan(event.value) else event.value
        # Before this event counts: its own value must not pull the mean that it is compared with.
        difference = value - self.mean()
        liked = self.is_positive(event)
        ahead = self.users_ahead.get(event.user_id)
        if of_user_only and ahead is None:
            known = self.users.get(event.user_id)
            ahead = self._new_user() if known is None else known.copy()
            self.users_ahead[event.user_id] = ahead
        if ahead is not None:
            self._count_user(ahead, item, liked, value)
            # An item of which nothing else is known resembles no other.
            known_place = self.items.place.get(event.item_id)
            if (
                self.options.neighbours
                and known_place is not None
                and known_place not in ahead.window
            ):
                ahead.remember(known_place, value, difference, self.options.neighbour_window)
        if of_user_only:
            return

        self.last_counted_time = event.time
        self.count += 1
        self.positive += liked
        self.value += value
        self.square += difference * difference
        items = self.items
        place = items.place_of(event.item_id)
        items.count[place] += 1
        items.positive[place] += liked
        items.value[place] += value
        user = self.users.get(event.user_id)
        if user is None:
            user = self.users[event.user_id] = self._new_user()
        self._count_user(user, item, liked, value)
        if self.options.neighbours and place not in user.window:
            self._count_pairs(user, place, difference)
            user.remember(place, value, difference, self.options.neighbour_window)
            items.holders[place] += 1
            items.square[place] += difference * difference
        if self.count >= self.next_refresh:
            self._refresh()

    def _new_user(self) -> UserState:
        return UserState(0, 0, 0.0, tuple({} for _ in self.by))

    def _count_user(self, user: UserState, item: Item, liked: bool, value: float) -> None:
        user.count += 1
        user.positive += liked
        user.value += value
        for field, counts in zip(self.by, user.by, strict=True):
            for name in values_of(item, field):
                entry = counts.setdefault(name, [0, 0])
                entry[0] += 1
                entry[1] += liked

    def _count_pairs(self, user: UserState, place: int, difference: float) -> None:
        if not user.window:
            return
        others = np.asarray(user.window)
        this = np.full(len(others), place)
        products = difference * np.asarray(user.window_difference)
        amounts = np.stack([np.ones_like(products), products], axis=1)
        self.pairs.add(this, others, amounts)
        self.pairs.add(others, this, amounts)

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

    def spread(self) -> float:
        """How far values lie from their mean (root mean square); 1 before two of them differ."""
        return math.sqrt(self.square / self.count) if self.square else 1.0

    def smoothed(self, amount, count, towards):  # type: ignore[no-untyped-def]
        """Share or mean of numbers or arrays, as if `smoothing` more events had the overall one."""
        return (amount + self.options.smoothing * towards) / (count + self.options.smoothing)

    # ---- files

    def save(self, path: str | Path) -> None:
        """Writes the state to a folder of Parquet and JSON; an older one there is replaced.

        What was counted `of_user_only` is not kept.
        """
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
        last = self.last_counted_time
        state["last_time"] = None if math.isinf(last) else last
        raw = {"format": FORMAT, "settings": settings, "options": options, "state": state}
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
        names = ("items", "users", "by", "pairs", "ranks")
        for file in ("statistics.json", *(f"{name}.parquet" for name in names)):
            if not (path / file).is_file():
                raise DataError(
                    f"{path} holds no statistics ({file} is missing); `m6rec data prepare` "
                    "writes them"
                )
        try:
            raw = json.loads((path / "statistics.json").read_text("utf-8"))
            if raw.get("format") != FORMAT:
                raise DataError(
                    f"{path}: format {raw.get('format')!r}, expected {FORMAT!r}; prepare the "
                    "data set again"
                )
            found = cls(**raw["settings"], options=StatisticsOptions(**raw["options"]))
            for name in _SCALARS:
                setattr(found, name, raw["state"][name])
            if found.last_time is None:
                found.last_time = -math.inf
            found.last_counted_time = found.last_time
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
                    "square": pa.array(items.square, pa.float64()),
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
                }
                | {
                    name: pa.array([getattr(u, name) for u in users], pa.list_(pa.float64()))
                    for name in ("window_value", "window_difference")
                }
            ),
            "by": pa.table(
                {
                    name: pa.array([row[index] for row in counted], kind)
                    for index, (name, kind) in enumerate(_BY_COLUMNS.items())
                }
            ),
            "pairs": _pairs_table(self.pairs),
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
            *(of_items[name] for name in ("count", "positive", "value", "holders", "square")),
        )
        of_users = columns["users"]
        names = ("count", "positive", "value", "window", "window_value", "window_difference")
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
        key, *counters = (tables["pairs"].column(c).to_numpy() for c in _PAIR_COLUMNS)
        self.pairs.load(key, np.stack(counters, axis=1))
        self.sorted_counts = np.asarray(columns["ranks"]["count"][0], np.float64)
        self.sorted_shares = np.asarray(columns["ranks"]["share"][0], np.float64)


_SCALARS = ("count", "positive", "value", "square", "last_time", "next_refresh")
_BY_COLUMNS = {
    "user": pa.int64(),
    "column": pa.int8(),
    "name": pa.string(),
    "count": pa.int64(),
    "positive": pa.int64(),
}


_PAIR_COLUMNS = ("key", "together", "products")


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
