"""Values explained by a few hidden factors of items and tastes: biased matrix factorisation.

    value ≈ mean + bias of the item + bias of the user + factors of the item · factors of the user

Items are fitted by alternating least squares (Zhou et al., 2008, the plain λ·I form), anew whenever
the events have grown by a few percent, starting from the fit before. Users are folded in when they
are asked about, from what they valued until that moment: nothing is kept of them, and a user of a
minute ago is known as well as an old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import scipy.sparse as sp

from m6rec_jax.data.statistics_settings import StatisticsSettings
from m6rec_jax.errors import DataError

# Weight of the factors' squares.
_REGULARIZATION = 10.0

# Rounds over the biases, and over the factors, of one fit. A fit starts where the last one ended.
_BIAS_ROUNDS = 3
_FACTOR_ROUNDS = 2
# A bound on memory: each row under work has a square matrix of its own.
_ROWS_AT_ONCE = 65_536


class ValueFactors:
    """Factors of all items, as of the last fit.

    Args:
      rank: factors per item.
      smoothing: biases are pulled towards zero as if by this many values at the mean.
      regularization: λ, the weight of the squares of all factors.

    Attributes:
      mean: of the values of the last fit.
      item_bias: `[items]`, of the items known then.
      item_factors: `[items, rank]`.
    """

    def __init__(self, rank: int, smoothing: float, regularization: float) -> None:
        self._rank, self._smoothing, self._regularization = rank, smoothing, regularization
        self.mean = 0.0
        self.item_bias = np.zeros(0)
        self.item_factors = np.zeros((0, rank))

    @classmethod
    def for_settings(cls, settings: StatisticsSettings) -> Self:
        """Factors that are not fitted yet."""
        rank = settings.options.factors if settings.has_values else 0
        return cls(rank, settings.options.smoothing, _REGULARIZATION)

    def save(self, file: Path) -> None:
        """Writes a fit for `load`."""
        np.savez(file, self.mean, self.item_bias, self.item_factors)

    def load(self, file: Path) -> None:
        """Reads what `save` wrote."""
        with np.load(file) as arrays:
            mean, self.item_bias, self.item_factors = arrays.values()
            self.mean = float(mean)

    @property
    def fitted(self) -> bool:
        """Whether there was a fit."""
        return len(self.item_bias) > 0

    def fit_entries(
        self,
        users: np.ndarray,
        items: np.ndarray,
        given: np.ndarray,
        num_users: int,
        num_items: int,
    ) -> None:
        """Fits all items anew.

        Args:
          users, items, given: the values in the windows of all users, user by user `[n]`.
          num_users, num_items: indices are below these.
        """
        self.mean = float(given.mean()) if len(given) else 0.0
        of_users = np.bincount(users, minlength=num_users) + self._smoothing
        of_items = np.bincount(items, minlength=num_items) + self._smoothing
        above, user_bias = given - self.mean, np.zeros(num_users)
        for _ in range(_BIAS_ROUNDS):
            self.item_bias = np.bincount(items, above - user_bias[users], num_items) / of_items
            user_bias = np.bincount(users, above - self.item_bias[items], num_users) / of_users
        shape = (num_users, num_items)
        rest = given - self.mean - user_bias[users] - self.item_bias[items]
        residuals = sp.csr_matrix((rest, (users, items)), shape)
        known = sp.csr_matrix((np.ones(len(given)), (users, items)), shape)
        factors = np.zeros((num_items, self._rank))
        factors[: len(self.item_factors)] = self.item_factors
        if not self.item_factors.any():
            # Zeros are a saddle point: the first fit starts from small random numbers instead.
            factors = np.random.default_rng(0).normal(0.0, 0.1, factors.shape)
        for _ in range(_FACTOR_ROUNDS):
            tastes = self._solve(residuals, known, factors)
            factors = self._solve(residuals.T.tocsr(), known.T.tocsr(), tastes)
        self.item_factors = factors

    def expected(
        self,
        indices: Sequence[int] | np.ndarray,
        window: Sequence[int] | np.ndarray,
        values: Sequence[float] | np.ndarray,
    ) -> np.ndarray:
        """What a user will probably value items.

        Items that the last fit did not know (by their indices, or -1) have no bias and no factors:
        they are expected to get what the user gives on average.

        Args:
          indices: of the items asked about.
          window, values: what the user valued so far, and how.

        Returns:
          float64, a value for each item.
        """
        num_known = len(self.item_bias)
        seen = np.asarray(window, np.int64)
        met = seen < num_known
        seen = seen[met]
        rest = np.asarray(values, np.float64)[met] - self.mean - self.item_bias[seen]
        user_bias = rest.sum() / (len(seen) + self._smoothing)
        factors = self.item_factors[seen]
        gram = factors.T @ factors + self._regularization * np.eye(self._rank)
        taste = _solved(gram, factors.T @ (rest - user_bias))
        items = np.asarray(indices, np.int64)
        fitted = (items >= 0) & (items < num_known)
        expected = np.full(len(items), self.mean + user_bias)
        items = items[fitted]
        expected[fitted] += self.item_bias[items] + self.item_factors[items] @ taste
        return expected

    def _solve(
        self, residuals: sp.csr_matrix, known: sp.csr_matrix, other: np.ndarray
    ) -> np.ndarray:
        """Factors `[rows, rank]` of least squares, given those of the columns `[columns, rank]`."""
        rank = self._rank
        # A matrix of squares is symmetric: half of it is summed, and both halves are taken from it.
        row, column = np.triu_indices(rank)
        squares = other[:, row] * other[:, column]
        place = np.zeros((rank, rank), np.int64)
        place[row, column] = place[column, row] = np.arange(len(row))
        factors = np.zeros((known.shape[0], rank))
        for start in range(0, len(factors), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            gram = (known[rows] @ squares)[:, place]
            gram += self._regularization * np.eye(rank)
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
