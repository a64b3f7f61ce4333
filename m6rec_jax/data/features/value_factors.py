"""Values explained by a few hidden factors of items and tastes: biased matrix factorisation.

    value ≈ mean + bias of the item + bias of the user + factors of the item · factors of the user

Items are fitted by alternating least squares (Zhou et al., 2008, the plain λ·I form), anew whenever
the events have grown by a few percent, starting from the fit before. Users are folded in when they
are asked about, from what they valued until that moment: nothing is kept of them, and a user of a
minute ago is known as well as an old one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.features.timeline import Timeline, schedule
from m6rec_jax.data.features.windows import WindowEntries
from m6rec_jax.errors import DataError

# Events before the first fit, and the fewest between two fits.
FIRST_FIT = 10
# λ, the weight of the squares of all factors.
REGULARIZATION = 10.0
# Rounds over the biases, and over the factors, of one fit. A fit starts where the last one ended.
_BIAS_ROUNDS = 3
_FACTOR_ROUNDS = 2
# A bound on memory: each row under work has a square matrix of its own.
_ROWS_AT_ONCE = 65_536


class ValueFactors(NamedTuple):
    """Factors of all items, as of one fit: mean of its values, biases `[items]` of the items known
    then (none before the first fit), factors `[items, rank]`.
    """

    mean: float
    item_bias: np.ndarray
    item_factors: np.ndarray

    @classmethod
    def none(cls, rank: int) -> ValueFactors:
        """Before the first fit."""
        return cls(0.0, np.zeros(0), np.zeros((0, rank)))

    def fit(
        self,
        users: np.ndarray,
        items: np.ndarray,
        values: np.ndarray,
        num_items: int,
        smoothing: float,
    ) -> ValueFactors:
        """Fits all items, numbered below `num_items`, anew, starting from this fit.

        `users`, `items` and `values` are what the windows of all users hold, user by user `[n]`.
        Biases are pulled towards zero as if by `smoothing` values at the mean.
        """
        num_users = int(users.max(initial=-1)) + 1
        mean = float(values.mean())
        of_users = np.bincount(users, minlength=num_users) + smoothing
        of_items = np.bincount(items, minlength=num_items) + smoothing
        above, user_bias = values - mean, np.zeros(num_users)
        for _ in range(_BIAS_ROUNDS):
            bias = np.bincount(items, above - user_bias[users], num_items) / of_items
            user_bias = np.bincount(users, above - bias[items], num_users) / of_users
        shape = (num_users, num_items)
        rest = values - mean - user_bias[users] - bias[items]
        residuals = sp.csr_matrix((rest, (users, items)), shape)
        known = sp.csr_matrix((np.ones(len(values)), (users, items)), shape)
        factors = np.zeros((num_items, self.item_factors.shape[1]))
        factors[: len(self.item_factors)] = self.item_factors
        if not self.item_factors.any():
            # Zeros are a saddle point: the first fit starts from small random numbers instead.
            factors = np.random.default_rng(0).normal(0.0, 0.1, factors.shape)
        for _ in range(_FACTOR_ROUNDS):
            tastes = _solve(residuals, known, factors)
            factors = _solve(residuals.T.tocsr(), known.T.tocsr(), tastes)
        return ValueFactors(mean, bias, factors)

    def expected(
        self, items: np.ndarray, window: np.ndarray, values: np.ndarray, smoothing: float
    ) -> np.ndarray:
        """What a user will probably value items, by their numbers `[n]`: float64 `[n]`.

        Items that the fit did not know have no bias and no factors: they are expected to get what
        the user gives on average. `window` and `values` are what the user valued so far, and how;
        `smoothing` is that of the fit.
        """
        fitted = window < len(self.item_bias)
        seen = window[fitted]
        rest = values[fitted] - self.mean - self.item_bias[seen]
        user_bias = rest.sum() / (len(seen) + smoothing)
        factors = self.item_factors[seen]
        gram = factors.T @ factors + REGULARIZATION * np.eye(factors.shape[1])
        taste = _solved(gram, factors.T @ (rest - user_bias))
        expected = np.full(len(items), self.mean + user_bias)
        fitted = items < len(self.item_bias)
        items = items[fitted]
        expected[fitted] += self.item_bias[items] + self.item_factors[items] @ taste
        return expected


def _solve(residuals: sp.csr_matrix, known: sp.csr_matrix, other: np.ndarray) -> np.ndarray:
    """Factors `[rows, rank]` of least squares, given those of the columns `[columns, rank]`."""
    rank = other.shape[1]
    # A matrix of squares is symmetric: half of it is summed, and both halves are taken from it.
    row, column = np.triu_indices(rank)
    squares = other[:, row] * other[:, column]
    place = np.zeros((rank, rank), np.int64)
    place[row, column] = place[column, row] = np.arange(len(row))
    factors = np.zeros((known.shape[0], rank))
    for start in range(0, len(factors), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        gram = (known[rows] @ squares)[:, place]
        gram += REGULARIZATION * np.eye(rank)
        factors[rows] = _solved(gram, (residuals[rows] @ other)[:, :, None])[:, :, 0]
    return factors


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError as error:
        raise DataError(
            "the events' values lie too far apart for {user_expected_value}, or are too large: "
            "scale them down, or leave it out of the template"
        ) from error


class FittedFactors:
    """The factors of every fit, in a folder that all processes see.

    Attributes:
      schedule: counts of events of the fits `[fits]`.
    """

    def __init__(self, folder: Path, timeline: Timeline, options: StatisticsOptions) -> None:
        self._folder, self._timeline, self._options = folder, timeline, options
        self.schedule = schedule(
            FIRST_FIT,
            lambda count: count + max(FIRST_FIT, math.ceil(options.factor_growth * count)),
            int(timeline.count[-1]),
        )

    def fit(
        self, entries: WindowEntries, past: ValueFactors | None = None, num_events: int = 0
    ) -> None:
        """Fits them to the entries of all users, each starting from the one before; of an update
        from `past`, the factors that were fitted to the first `num_events` events.
        """
        timeline, done = self._timeline, 0
        factors = past or ValueFactors.none(self._options.factors)
        if len(factors.item_bias):
            done = int(np.searchsorted(self.schedule, num_events, side="right"))
            self._save(done - 1, factors)
        first = np.sort(timeline.first_place)
        places = np.searchsorted(timeline.count, self.schedule[done:]).tolist()
        for number, place in enumerate(places, done):
            inside = entries.at(place)
            factors = factors.fit(
                entries.user[inside],
                entries.item[inside],
                entries.value[inside],
                # Users are numbered as they came first, and so are items.
                int(np.searchsorted(first, place)),
                self._options.smoothing,
            )
            self._save(number, factors)

    def _save(self, number: int, factors: ValueFactors) -> None:
        np.savez(self._folder / f"{number}.npz", **factors._asdict())

    def of(self, epoch: int) -> ValueFactors:
        """Of one fit; -1 for the last one, or none if there was none."""
        if not len(self.schedule):
            return ValueFactors.none(self._options.factors)
        with np.load(self._folder / f"{epoch % len(self.schedule)}.npz") as arrays:
            return ValueFactors(**arrays)._replace(mean=float(arrays["mean"]))
