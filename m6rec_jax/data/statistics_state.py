"""What `data.statistics` counts: the incremental state behind the words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import gin
import numpy as np

from m6rec_jax.data.pair_counts import PairCounts
from m6rec_jax.data.schema import DatasetSpec
from m6rec_jax.data.value_factors import ValueFactors
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Event, Item

# How much likelier one item makes another is pulled towards "no likelier" as if by so many users.
NEIGHBOUR_SMOOTHING = 5.0
# Pulls the similarity of each pair of items towards zero, in the unit of squared values.
SIMILARITY_SMOOTHING = 10.0
# Weight of the factors' squares.
FACTOR_REGULARIZATION = 10.0
# Events before the first fit of the factors, and the fewest between two fits.
FIRST_FIT = 10


def next_refresh(count: int) -> int:
    """After how many events popularity is looked at again: 2% more than `count`."""
    return count + max(1, count // 50)


def next_fit(count: int, growth: float) -> int:
    """After how many events factors are fitted anew that were fitted after `count`."""
    return count + max(FIRST_FIT, math.ceil(growth * count))


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StatisticsOptions:
    """How statistics are computed; saved with them.

    Attributes:
      smoothing: shares and means are pulled towards the overall one as if by this many events.
      neighbours: whether to count pairs of items. Costs most of the time and memory of large
        catalogues: at most `2 * neighbour_window` pairs per event.
      neighbour_window: how many of a user's last items are paired with a new one.
      factors: hidden factors of items and tastes that explain values, see `value_factors`; 0: none.
        They are fitted to the users' windows, whether or not pairs are counted.
      factor_growth: they are fitted anew when this share more events came.
      user_items: whether to count how often each user had each item.
    """

    smoothing: float = 5.0
    neighbours: bool = True
    neighbour_window: int = 1000
    factors: int = 16
    factor_growth: float = 0.03
    user_items: bool = True

    def __post_init__(self) -> None:
        for name in ("smoothing", "neighbour_window", "factor_growth"):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"StatisticsOptions.{name} must be positive, not {value}")
        if self.factors < 0:
            raise ConfigError(f"StatisticsOptions.factors must be 0 or more, not {self.factors}")


@dataclasses.dataclass(slots=True)
class UserState:
    """What is known of one user.

    Attributes:
      count, positive, value: events, positive ones, sum of values.
      last_time: of the user's last event.
      by: for each column of `by`, value -> [events, positive ones].
      items: item id -> (events, time of the last one), with `StatisticsOptions.user_items`.
      window: indices of the user's last distinct items, oldest first.
      window_value: the value the user gave each of them (at its first event in the window).
      window_difference: by how much that was above the mean of all events then.
    """

    count: int
    positive: int
    value: float
    last_time: float
    by: tuple[dict[str, list[int]], ...]
    items: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    window: list[int] = dataclasses.field(default_factory=list)
    window_value: list[float] = dataclasses.field(default_factory=list)
    window_difference: list[float] = dataclasses.field(default_factory=list)

    def copy(self) -> UserState:
        """A copy that can be counted on by itself."""
        return UserState(
            self.count,
            self.positive,
            self.value,
            self.last_time,
            tuple({name: list(entry) for name, entry in counts.items()} for counts in self.by),
            dict(self.items),
            list(self.window),
            list(self.window_value),
            list(self.window_difference),
        )

    def remember(self, index: int, value: float, difference: float, limit: int) -> None:
        """Appends an item to the window, which forgets its oldest one beyond `limit`."""
        self.window.append(index)
        self.window_value.append(value)
        self.window_difference.append(difference)
        if len(self.window) > limit:
            del self.window[0], self.window_value[0], self.window_difference[0]


@dataclasses.dataclass(slots=True)
class ItemStates:
    """What is known of every item, by its index (the order in which items first occurred).

    Attributes:
      index: item id -> index.
      count, positive, value: events, positive ones, sum of values `[items]`.
      holders: how often the item entered a user's window `[items]`.
      square: sum of squared differences of the values that entered windows `[items]`.
    """

    index: dict[str, int] = dataclasses.field(default_factory=dict)
    count: list[int] = dataclasses.field(default_factory=list)
    positive: list[int] = dataclasses.field(default_factory=list)
    value: list[float] = dataclasses.field(default_factory=list)
    holders: list[int] = dataclasses.field(default_factory=list)
    square: list[float] = dataclasses.field(default_factory=list)


class StatisticsSettings:
    """What statistics count, for those who count and those who look counts up.

    Attributes:
      by: item columns by which a user's behaviour is counted.
      at_least: events with at least this value are positive; None where all are.
      has_values: whether events have values.
      options: of the statistics.
    """

    by: tuple[str, ...]
    at_least: float | None
    has_values: bool
    options: StatisticsOptions

    @property
    def keeps_windows(self) -> bool:
        """Whether some feature needs the items that a user acted on last."""
        return self.options.neighbours or self.has_factors

    @property
    def has_factors(self) -> bool:
        """Whether values are explained by factors."""
        return self.has_values and self.options.factors > 0

    @property
    def has_labels(self) -> bool:
        """Whether some events can be negative."""
        return self.at_least is not None

    def user_names(self) -> tuple[str, ...]:
        """Names of the features of users alone."""
        names = ["user_count"]
        if self.has_labels:
            names.append("user_positive_percent")
        if self.has_values:
            names.append("user_mean_value")
        return tuple(names)

    def names(self) -> tuple[str, ...]:
        """Names of all features: what a candidate template may ask for."""
        names = ["item_count", "item_popularity_top", "item_popularity_rank"]
        if self.options.user_items:
            names += ["user_item_times", "user_item_ago"]
        if self.has_labels:
            names += ["item_positive_percent", "item_liked_top", "item_liked_rank"]
        if self.has_values:
            names.append("item_mean_value")
        for field in self.by:
            names.append(f"user_{field}_counts")
            if self.has_labels:
                names.append(f"user_{field}_percent")
        if self.options.neighbours:
            names.append("user_neighbours_percent" if self.has_labels else "user_neighbours_times")
            if self.has_values:
                names.append("user_taste_difference")
        if self.has_factors:
            names.append("user_expected_value")
        return (*names, *self.user_names())

    def smoothed(self, amount, count, towards):  # type: ignore[no-untyped-def]
        """Share or mean of numbers or arrays, as if `smoothing` more events had the overall one."""
        return (amount + self.options.smoothing * towards) / (count + self.options.smoothing)


class StatisticsState(StatisticsSettings):
    """Counts over the events so far.

    Args:
      by, at_least, has_values: see `StatisticsSettings`.
      options: of the statistics; None for gin's or the defaults.
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
        self.last_time = -math.inf
        self.items = ItemStates()
        self.users: dict[str, UserState] = {}
        # (users who acted on both, sum over them of the products of their differences).
        self.pairs = PairCounts(0)
        # Sorted counts and shares liked of all items, as they were at the last refresh `[items]`.
        self.sorted_counts = np.zeros(0)
        self.sorted_shares = np.zeros(0)
        self.next_refresh = 1
        factors = self.options.factors if has_values else 0
        self.factors = ValueFactors(factors, self.options.smoothing, FACTOR_REGULARIZATION)
        self.next_fit = FIRST_FIT

    @classmethod
    def for_dataset(cls, spec: DatasetSpec, options: StatisticsOptions | None = None) -> Self:
        """Empty statistics for the data set that `spec` declares."""
        at_least = spec.label.at_least
        return cls(spec.statistics.by, at_least, spec.events.value is not None, options)

    # ---- update

    def is_positive(self, event: Event) -> bool:
        """Whether an event counts as positive."""
        return self.at_least is None or (event.value is not None and event.value >= self.at_least)

    def fold_in(self, user_id: str, behaviours: Sequence[tuple[Event, Item]]) -> UserState | None:
        """A user's state with behaviours that these statistics do not hold, which stay as they are.

        For served users: of new ones a request says all that is known, of known ones what came
        since.

        Args:
          user_id: may be unknown, or empty.
          behaviours: the user's events, oldest first, with their items. Of a known user only those
            later than the last one that was counted of it; the others are held already.

        Returns:
          For `state` of `Statistics.group_features`; None where nothing is known.
        """
        known = self.users.get(user_id)
        if known is not None:
            behaviours = [pair for pair in behaviours if pair[0].time > known.last_time]
        if not behaviours:
            return known
        state = self.new_user() if known is None else known.copy()
        for event, item in behaviours:
            self._count_ahead(state, event, item)
        return state

    def new_user(self) -> UserState:
        """A user of whom nothing is known."""
        return UserState(0, 0, 0.0, -math.inf, tuple({} for _ in self.by))

    def _count_user(self, user: UserState, event: Event, item: Item) -> None:
        liked = self.is_positive(event)
        user.count += 1
        user.positive += liked
        user.value += value_of(event)
        user.last_time = event.time
        if self.options.user_items and item.id:  # a request may describe an item without an id
            times, _ = user.items.get(item.id, (0, 0.0))
            user.items[item.id] = times + 1, event.time
        for field, counts in zip(self.by, user.by, strict=True):
            for name in values_of(item, field):
                entry = counts.setdefault(name, [0, 0])
                entry[0] += 1
                entry[1] += liked

    def _count_ahead(self, user: UserState, event: Event, item: Item) -> None:
        """Counts an event in its user's state alone."""
        value = value_of(event)
        self._count_user(user, event, item)
        # An item of which nothing else is known resembles no other.
        index = self.items.index.get(item.id)
        if self.keeps_windows and index is not None and index not in user.window:
            user.remember(index, value, value - self.mean(), self.options.neighbour_window)

    def share(self) -> float:
        """Share of positive events; 0 before the first."""
        return self.positive / self.count if self.count else 0.0

    def mean(self) -> float:
        """Mean value; 0 before the first."""
        return self.value / self.count if self.count else 0.0

    def spread(self) -> float:
        """How far values lie from their mean (root mean square); 1 before two of them differ."""
        return math.sqrt(self.square / self.count) if self.square else 1.0


def value_of(event: Event) -> float:
    return 0.0 if event.value is None or math.isnan(event.value) else event.value


def values_of(item: Item, field: str) -> tuple[str, ...]:
    """The distinct values an item has in a column, as text."""
    value = item.attributes.get(field)
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(value))
    text = text_of(value)
    return (text,) if text else ()
