"""Whether one model is better than another on the same examples, or it may be chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m6rec_jax.errors import DataError

# Standard errors beyond which a difference is more than chance: 95% of chance lies within.
_FAR = 2.0


class PairedDifference(NamedTuple):
    """By how much a model's scores exceed another's: the mean over all examples, and its standard
    error; examples of one user count as one draw, for they are alike.
    """

    mean: float
    error: float

    @classmethod
    def of(
        cls, users: npt.ArrayLike, scores: npt.ArrayLike, others: npt.ArrayLike
    ) -> PairedDifference:
        """Compares scores `[n]` of a model and of another, for the users `[n]` of the examples.

        Raises:
          DataError: they are not of the same examples, or of fewer than two users.
        """
        difference = np.asarray(scores, np.float64) - np.asarray(others, np.float64)
        names, numbers = np.unique(np.asarray(users), return_inverse=True)
        if difference.shape != numbers.shape or len(names) < 2:
            raise DataError(
                f"two models are compared on the same examples of two users at least, not on "
                f"{difference.shape} of {len(names)} users"
            )
        mean = float(difference.mean())
        sums = np.bincount(numbers, difference - mean)
        spread = float(np.sqrt((sums**2).sum() * len(names) / (len(names) - 1)))
        return cls(mean, spread / len(difference))

    @property
    def is_loss(self) -> bool:
        """Whether the model is worse by more than chance."""
        return self.mean < -_FAR * self.error

    def verdict(self, score: str, model: str, other: str) -> str:
        """In plain words."""
        how = "differs from {} by no more than chance"
        if abs(self.mean) > _FAR * self.error:
            how = f"is {'worse' if self.is_loss else 'better'} than {{}}, by more than chance"
        numbers = f"{score} {self.mean:+.2g} (standard error {self.error:.2g})"
        return f"{model} {how.format(other)}: {numbers}"
