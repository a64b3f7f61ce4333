"""Statistics as of a time, put into words (paper, section 2: "among the top 5%", "4 times").

`Statistics` is an incremental state: `update` takes the next event, `features` gives what the
events so far say about a user and an item. Training text and served text both come from it, so
they cannot drift apart. When a data set is prepared, `as_of` folds the events in time order, and
everything asked about a moment is answered before the events of that moment are counted: a row's
own outcome is never in its statistics (leave-one-out statistics leak it, and a model finds that).

Names of the features (None where there is nothing to say, so that a template drops the clause):

  of the item       item_count               users' events with it: "about 250"
                    item_positive_percent    share liked, smoothed: "72"
                    item_mean_value          mean value, smoothed: "3.85"
                    item_popularity_top      "among the top 5%" by events
                    item_popularity_rank     the same finer: 4 means within the top 4%
                    item_liked_top           "among the top 5%" by smoothed share liked
                    item_liked_rank          the same finer
  of the user       user_count, user_positive_percent, user_mean_value
  of both, for each item column F of `statistics.by`
                    user_F_counts            ("4 of 6 comedy", "2 of 2 thriller"): liked of all
                    user_F_percent           smoothed share liked of these
  of both, the item itself (`StatisticsOptions.user_items`)
                    user_item_times          how often the user had it: "3"
                    user_item_ago            when last: "5 days ago"
  of both, over pairs of items (`StatisticsOptions.neighbours`)
                    user_neighbours_percent  the share the user liked of the items that are valued
                                             like this one, each by how alike they are
                    user_taste_difference    by how much the user will value it above its mean,
                                             going by the same items: "+0.20"
  of both, from what all users valued (`StatisticsOptions.factors`)
                    user_expected_value      what the user will value it, by hidden factors of
                                             items and tastes (see `value_factors`): "3.85"

Two items are valued alike when those who value one above the average value the other above it, too:
their similarity is the sum over the users of both of the products of the differences, divided by
the root of the product of both items' sums of squares (and shrunk, where few users know both).

Where every event is positive (a shop's purchases), there is nothing to say about shares liked:
the features about shares do not exist, user_F_counts says "4 comedy", and
`user_neighbours_times` takes the neighbours' place: how many times likelier than others those
are to act on this item who acted on what the user acted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from m6rec_jax.data import neighbours, statistics_files
from m6rec_jax.data.statistics_state import (
    StatisticsOptions,
    StatisticsState,
    UserState,
    values_of,
)
from m6rec_jax.errors import DataError
from m6rec_jax.text import verbalize
from m6rec_jax.text.records import Item, Value

__all__ = ["Statistics", "StatisticsOptions"]


class Statistics(StatisticsState):
    """The as-of-time statistics of one data set: the counts, and the words about them.

    Make it with `Statistics.for_dataset(spec)` or `Statistics.load(path)`.
    """

    # ---- files

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote; raises DataError when it is missing or damaged."""
        return statistics_files.load(cls, path)

    # ---- names

    def user_names(self) -> tuple[str, ...]:
        """Names of the features that `user_features` gives."""
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

    # ---- features

    def user_features(
        self, user_id: str, time: float | None = None, *, state: UserState | None = None
    ) -> dict[str, Value]:
        """What the events so far say about a user: the features `user_names`.

        Args:
          user_id: may be unknown.
          time: see `features`.
          state: of `fold_in`, in place of what is known by the id.
        """
        self._check_time(time)
        found: dict[str, Value] = dict.fromkeys(self.user_names())
        user = state or self.users.get(user_id)
        if user is None:
            return found
        found["user_count"] = verbalize.count(user.count)
        if self.has_labels:
            share = self.smoothed(user.positive, user.count, self.share())
            found["user_positive_percent"] = _percent(share)
        if self.has_values:
            mean = self.smoothed(user.value, user.count, self.mean())
            found["user_mean_value"] = verbalize.rounded(mean, self.spread())
        return found

    def group_features(
        self,
        user_id: str,
        items: Sequence[Item],
        time: float | None = None,
        *,
        state: UserState | None = None,
    ) -> list[dict[str, Value]]:
        """What the events so far say about a user and items: the features `names` of each item.

        Args:
          user_id, items: may be unknown.
          time: the moment, unix seconds; None for "after all events".
          state: see `user_features`.

        Raises:
          DataError: an event at `time` or later was counted already, so they would leak the future.
        """
        of_user = self.user_features(user_id, time, state=state)
        found: list[dict[str, Value]] = []
        user = state or self.users.get(user_id)
        names = self.names()
        for item in items:
            values: dict[str, Value] = dict.fromkeys(names)
            values.update(of_user)
            self._item_features(item.id, values)
            if user is not None:
                self._by_features(user, item, values)
                _had_features(user, item, time, values)
            found.append(values)
        if user is not None and user.window:
            known = [
                (values, self.items.index[item.id])
                for values, item in zip(found, items, strict=True)
                if item.id in self.items.index
            ]
            if known and self.options.neighbours:
                if self.has_values:
                    self._add_taste(user, known)
                if not self.has_labels:
                    self._add_times(user, known)
            if self.has_factors and self.factors.fitted:
                indices = [self.items.index.get(item.id, -1) for item in items]
                expected = self.factors.expected(indices, user.window, user.window_value)
                for values, value in zip(found, expected.tolist(), strict=True):
                    values["user_expected_value"] = verbalize.rounded(value, self.spread())
        return found

    def _item_features(self, item_id: str, values: dict[str, Value]) -> None:
        index = self.items.index.get(item_id)
        if index is None:
            return
        count = self.items.count[index]
        values["item_count"] = verbalize.count(count)
        _standing(values, "item_popularity", self.sorted_counts, count)
        if self.has_labels:
            share = self.smoothed(self.items.positive[index], count, self.share())
            values["item_positive_percent"] = _percent(share)
            _standing(values, "item_liked", self.sorted_shares, share)
        if self.has_values:
            mean = self.smoothed(self.items.value[index], count, self.mean())
            values["item_mean_value"] = verbalize.rounded(mean, self.spread())

    def _by_features(self, user: UserState, item: Item, values: dict[str, Value]) -> None:
        for field, counts in zip(self.by, user.by, strict=True):
            found = [(name, *counts[name]) for name in values_of(item, field) if name in counts]
            if not found:
                continue
            if not self.has_labels:
                values[f"user_{field}_counts"] = tuple(f"{n} {name}" for name, n, _ in found)
                continue
            values[f"user_{field}_counts"] = tuple(f"{p} of {n} {name}" for name, n, p in found)
            own = self.smoothed(user.positive, user.count, self.share())
            share = self.smoothed(sum(p for *_, p in found), sum(n for _, n, _ in found), own)
            values[f"user_{field}_percent"] = _percent(share)

    def _add_taste(self, user: UserState, known: Sequence[tuple[dict[str, Value], int]]) -> None:
        """Adds features by the items valued alike to items (features so far, index)."""
        indices, window = np.asarray([index for _, index in known]), np.asarray(user.window)
        given = np.asarray(user.window_value)
        items = self.items
        # Of these items alone: the whole lists would be made arrays for every group.
        square = np.asarray([items.square[index] for index in (*indices, *user.window)])
        means = self.smoothed(
            np.asarray([items.value[index] for index in user.window]),
            np.asarray([items.count[index] for index in user.window]),
            self.mean(),
        )
        above, alike = neighbours.differences(
            self.pairs.get(indices, window)[1],
            square[: len(indices)],
            square[len(indices) :],
            given - means,
            self.options.similarity_smoothing,
        )
        for (values, _), difference in zip(known, above.tolist(), strict=True):
            values["user_taste_difference"] = verbalize.rounded(
                difference, self.spread(), signed=True
            )
        if self.at_least is None:
            return
        own = self.smoothed(user.positive, user.count, self.share())
        liked = neighbours.shares(alike, given >= self.at_least, own)
        for (values, _), share in zip(known, liked.tolist(), strict=True):
            values["user_neighbours_percent"] = _percent(share)

    def _add_times(self, user: UserState, known: Sequence[tuple[dict[str, Value], int]]) -> None:
        """Adds how much likelier items are made by what the user acted on."""
        indices, window = np.asarray([index for _, index in known]), np.asarray(user.window)
        holders = np.asarray([self.items.holders[index] for index in (*indices, *user.window)])
        times = neighbours.times_likelier(
            self.pairs.get(indices, window)[0],
            holders[: len(indices)],
            holders[len(indices) :],
            len(self.users),
            self.options.neighbour_smoothing,
        )
        for (values, _), found in zip(known, times.tolist(), strict=True):
            values["user_neighbours_times"] = f"{found:.1f}"

    def _check_time(self, time: float | None) -> None:
        if time is not None and time <= self.last_time:
            raise DataError(
                f"statistics hold an event at {self.last_time}, so there are none as of "
                f"{time}: that would leak the future"
            )


def _had_features(
    user: UserState, item: Item, time: float | None, values: dict[str, Value]
) -> None:
    """Adds how often a user had an item, and how long before a moment."""
    if item.id not in user.items:
        return
    times, last = user.items[item.id]
    values["user_item_times"] = verbalize.count(times)
    if time is not None:
        values["user_item_ago"] = verbalize.ago(time - last)


def _standing(values: dict[str, Value], name: str, population: np.ndarray, value: float) -> None:
    """Adds how high `value` stands in the sorted `population` `[items]`, in words and percent."""
    if not len(population):
        return
    # A share must not fall below itself by the rounding of another order of operations.
    not_higher = int(np.searchsorted(population, value + 1e-12, side="right"))
    values[f"{name}_top"] = verbalize.percentile(not_higher / len(population))
    higher = len(population) - not_higher
    values[f"{name}_rank"] = min(100, 100 * higher // len(population) + 1)


def _percent(share: float) -> str:
    # Rounding may put the mean of ones above one.
    return verbalize.percent(min(1.0, max(0.0, float(share))))
