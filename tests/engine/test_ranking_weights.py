"""Learning what features of candidates are worth."""

import msgspec
import numpy as np
import pytest
from scipy.optimize import minimize

from m6rec_jax.engine.index.ranking_weights import KNOWN, NEW, UNLEARNT, RankingWeights, fit_choices
from m6rec_jax.errors import DataError


def test_weights_are_the_minimum_that_a_general_search_finds() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 9, 40)
    rows = np.repeat(np.arange(40), lengths)
    features = rng.normal(size=(len(rows), 3)) * [1.0, 20.0, 0.1]
    chosen = np.zeros(len(rows), bool)
    for row in range(40):
        if row % 5:  # a fifth wants nothing that is there
            own = np.flatnonzero(rows == row)
            gumbel = rng.gumbel(size=len(own))
            chosen[own[np.argmax(features[own] @ [1.0, 0.1, 0.0] + gumbel)]] = True
            if row % 7 == 0:
                chosen[own[0]] = True  # two are wanted
    kept = np.isin(rows, rows[chosen])
    scale = np.sqrt(np.mean(features[kept] ** 2, axis=0))

    def loss(weights: np.ndarray) -> float:
        total = float(np.sum((weights * scale) ** 2))
        for row in np.unique(rows[chosen]):
            scores = features[rows == row] @ weights
            shares = np.exp(scores) / np.exp(scores).sum()
            total -= float(np.log(shares[chosen[rows == row]]).mean())
        return total

    found = fit_choices(features, rows, chosen)
    simple = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 0})
    np.testing.assert_allclose(found * scale, simple.x * scale, atol=1e-3)
    # What decided was found, more or less.
    assert 0.3 < found[0] < 2.0
    assert 0.03 < found[1] < 0.3


def test_a_feature_that_is_always_zero_weighs_nothing_and_nothing_to_learn_is_said() -> None:
    features, rows = np.array([[1.0, 0.0], [2.0, 0.0]]), np.zeros(2, int)
    assert fit_choices(features, rows, np.array([True, False]))[1] == 0.0
    with pytest.raises(DataError, match="nothing to learn from"):
        fit_choices(features, rows, np.zeros(2, bool))


def test_weights_are_kept_by_name() -> None:
    vector = np.arange(1.0, 1 + len(KNOWN) + len(NEW))
    weights = RankingWeights.of_vector(vector)
    assert weights.known["similarity"] == 1.0
    assert weights.new["offset"] == vector[-1]
    np.testing.assert_array_equal(weights.vector(), vector)
    kept = msgspec.convert({"known": weights.known, "new": weights.new, "rows": 3}, RankingWeights)
    assert kept == weights
    assert UNLEARNT.vector()[0] == 5.0
