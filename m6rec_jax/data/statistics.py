"""The statistics that requests are answered with: what `prepare` counted, put into words.

`Statistics` holds the state after the last event. Training text and served text come from the same
formulas (`features`), so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from m6rec_jax.data import neighbours, statistics_files
from m6rec_jax.data.features import Counts, Features, ValuesMet
from m6rec_jax.data.neighbours import ItemSums
from m6rec_jax.data.statistics_state import (
    StatisticsOptions,
    StatisticsState,
    UserState,
    values_of,
)
from m6rec_jax.errors import DataError
from m6rec_jax.text.column_text import Source
from m6rec_jax.text.records import Item, Value

__all__ = ["Statistics", "StatisticsOptions"]


class Statistics(StatisticsState):
    """The statistics of one data set: the counts, and the words about them.

    Make it with `Statistics.for_dataset(spec)` or `Statistics.load(path)`.
    """

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote; raises DataError when it is missing or damaged."""
        return statistics_files.load(cls, path)

    def user_features(
        self, user_id: str, time: float | None = None, *, state: UserState | None = None
    ) -> dict[str, Value]:
        """What the events so far say about a user: the features `user_names`.

        Args:
          user_id: may be unknown.
          time, state: see `group_features`.
        """
        asked = self._asked(user_id, time, state)
        return _at(asked.of_users(self.user_names()), 0)

    def group_features(
        self,
        user_id: str,
        items: Sequence[Item],
        time: float | None = None,
        *,
        state: UserState | None = None,
        names: Sequence[str] | None = None,
    ) -> list[dict[str, Value]]:
        """What the events so far say about a user and items: features of each item.

        Args:
          user_id, items: may be unknown.
          time: the moment, unix seconds; None for "after all events".
          state: of `fold_in`, in place of what is known by the id.
          names: those that are wanted, and perhaps others; None: all of `self.names()`.

        Raises:
          DataError: an event at `time` or later was counted already, so they would leak the future.
        """
        asked = self._asked(user_id, time, state)
        owners = np.zeros(len(items), np.int64)
        wanted = self.names() if names is None else set(names).intersection(self.names())
        found = asked.of_candidates(tuple(wanted), owners, items, asked.pairs(items))
        return [_at(found, number) for number in range(len(items))]

    def _asked(self, user_id: str, time: float | None, state: UserState | None) -> _Asked:
        if time is not None and time <= self.last_time:
            raise DataError(
                f"statistics hold an event at {self.last_time}, so there are none as of "
                f"{time}: that would leak the future"
            )
        user = state or self.users.get(user_id) or self.new_user()
        return _Asked(self, user, np.nan if time is None else time)


class _Asked(Features[Sequence[Item]]):
    """What is known of one user after all events, and at a moment (NaN where it is not known)."""

    def __init__(self, state: StatisticsState, user: UserState, time: float) -> None:
        self._state, self._user, self._time = state, user, time
        share, mean, spread = np.asarray([[state.share()], [state.mean()], [state.spread()]])
        counts = (user.count, user.positive, user.value)
        users = Counts(*(np.asarray([number]) for number in counts))
        super().__init__(state, share, mean, spread, users)

    def item_counts(self, items: Sequence[Item], owners: np.ndarray) -> Counts:
        of, indices = self._state.items, self._indices(items)
        columns = (of.count, of.positive, of.value)
        return Counts(*(np.asarray([c[i] if i >= 0 else 0 for i in indices]) for c in columns))

    def standings(
        self, kind: str, numbers: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        state = self._state
        population = state.sorted_counts if kind == "counts" else state.sorted_shares
        # A share must not fall below itself by the rounding of another order of operations.
        not_higher = np.searchsorted(population, numbers + 1e-12, side="right")
        return not_higher, np.full(len(numbers), len(population))

    def times_had(self, items: Sequence[Item], owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        had = [self._user.items.get(item.id, (0, np.nan)) for item in items]
        return np.asarray([times for times, _ in had]), self._time - np.asarray(
            [last for _, last in had]
        )

    def values_met(self, field: str, items: Sequence[Item], owners: np.ndarray) -> ValuesMet:
        counts = self._user.by[self._state.by.index(field)]
        named = [(n, name) for n, item in enumerate(items) for name in values_of(item, field)]
        met = np.asarray([counts.get(name, (0, 0)) for _, name in named]).reshape(-1, 2)
        candidate = np.asarray([n for n, _ in named], np.int64)
        return ValuesMet(candidate, [name for _, name in named], met[:, 0], met[:, 1])

    def expected(self, items: Sequence[Item], owners: np.ndarray) -> np.ndarray:
        user, factors = self._user, self._state.factors
        if not (user.window and factors.fitted):
            return np.full(len(items), np.nan)
        return factors.expected(self._indices(items), user.window, user.window_value)

    def pairs(self, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
        """What pairs of items say: see `Features.of_candidates`."""
        found = np.full((2, len(items)), np.nan)
        indices = np.asarray(self._indices(items), np.int64)
        known = indices >= 0
        state, user = self._state, self._user
        if state.options.neighbours and user.window and known.any():
            found[:, known] = neighbours.features(
                state,
                state.pairs.get(indices[known], np.asarray(user.window)),
                self._sums(indices[known].tolist()),
                self._sums(user.window),
                np.asarray(user.window_value),
                len(state.users),
                float(self.user_share[0]),
            )
        return found[0], found[1]

    def _sums(self, items: Sequence[int]) -> ItemSums:
        of = self._state.items
        # Of these items alone: the whole lists would be made arrays for every request.
        columns = (of.holders, of.square, of.value, of.count)
        holders, squares, values, counts = ([c[item] for item in items] for c in columns)
        means = self.settings.smoothed(np.asarray(values), np.asarray(counts), self._state.mean())
        return ItemSums(np.asarray(holders), np.asarray(squares), means)

    def _indices(self, items: Sequence[Item]) -> list[int]:
        return [self._state.items.index.get(item.id, -1) for item in items]


def _at(sources: Mapping[str, Source], number: int) -> dict[str, Value]:
    """The words about one of the users or candidates."""
    found: dict[str, Value] = {}
    for source in sources.values():
        found |= source.at(number)
    return found
