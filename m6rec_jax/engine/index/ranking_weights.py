"""How much each thing counts that a `Reranker` orders items by, and how that is learnt.

Items that somebody has acted on have all features. New ones, of which no event was counted, have
what their text tells and whether this very user had them, with weights of their own, and an offset:
how likely a new item is, all else equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize

from m6rec_jax.errors import DataError

# `Reranker.candidates` says what they are.
_HAD = ("had", "had_times", "had_since", "had_lately")
KNOWN = (
    *("similarity", "co_occurrence", "following", "following_share", "ease", "ease_sum"),
    *("words", "word_match", "past_words", "popularity"),
    *_HAD,
)
NEW = ("similarity", "words", "word_match", "past_words", *_HAD, "offset")
# What an item that stands near nothing has for its share, one that nothing speaks for, and one
# without a common word.
LEAST_SHARE, LEAST_EASE, LEAST_MATCH = 1e-3, 1e-2, 1e-2
# Of the sum of squares of the weights, as large as features are; rows weigh 1 each.
_PENALTY = 1.0


@dataclasses.dataclass(frozen=True)
class RankingWeights:
    """By feature; those that are not named count nothing.

    Attributes:
      known: of items that somebody has acted on.
      new: of items that nobody has.
    """

    known: Mapping[str, float]
    new: Mapping[str, float]

    def vector(self) -> np.ndarray:
        """Weights of known items in the order of `KNOWN`, then of new ones in that of `NEW`."""
        known = [self.known.get(name, 0.0) for name in KNOWN]
        return np.array([*known, *(self.new.get(name, 0.0) for name in NEW)])

    @classmethod
    def of_vector(cls, vector: np.ndarray) -> RankingWeights:
        """The inverse of `vector`."""
        values = vector.tolist()
        return cls(
            dict(zip(KNOWN, values[: len(KNOWN)], strict=True)),
            dict(zip(NEW, values[len(KNOWN) :], strict=True)),
        )


# Where nothing was learnt: a new item is one that stands near nothing.
UNLEARNT = RankingWeights(
    {"similarity": 5.0, "co_occurrence": 1.0, "words": 1.0, "had_times": 2.0},
    {"similarity": 5.0, "offset": float(np.log(LEAST_SHARE)), "words": 1.0, "had_times": 2.0},
)


def fit_choices(features: np.ndarray, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Weights under which what was chosen is likeliest: a conditional logit (McFadden, 1974).

    The loss is convex: whatever finds its minimum finds the same.

    Args:
      features: of all candidates of all rows `[candidates, features]`; `rows` ascend.
      rows: to which row each belongs, 0, 1, ... `[candidates]`.
      chosen: which were chosen, bool `[candidates]`; several of a row share its weight.

    Returns:
      float64 `[features]`.

    Raises:
      DataError: nothing was chosen.
    """
    per_row = np.bincount(rows, chosen)
    kept = per_row[rows] > 0
    if not kept.any():
        raise DataError("no wanted item is among the candidates: there is nothing to learn from")
    features, chosen = features[kept].astype(np.float64), chosen[kept] / per_row[rows[kept]]
    starts = np.flatnonzero(np.diff(rows[kept], prepend=-1))
    lengths = np.diff(starts, append=len(features))
    # As large as they are, whatever they are measured in; no shift, for there is a row's own.
    scale = np.sqrt(np.mean(features**2, axis=0))
    scaled = features / np.where(scale > 0, scale, 1.0)
    wanted = chosen @ scaled

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = scaled @ weights
        highest = np.maximum.reduceat(scores, starts)
        shares = np.exp(scores - np.repeat(highest, lengths))
        sums = np.add.reduceat(shares, starts)
        shares /= np.repeat(sums, lengths)
        value = np.sum(np.log(sums) + highest) - wanted @ weights
        slope = shares @ scaled - wanted
        return value + _PENALTY * weights @ weights, slope + 2 * _PENALTY * weights

    found = minimize(loss, np.zeros(scaled.shape[1]), jac=True, method="L-BFGS-B")
    return np.where(scale > 0, found.x / np.where(scale > 0, scale, 1.0), 0.0)
