"""Factors of values against loops."""

import numpy as np
import pytest

from m6rec_jax.data.features import value_factors
from m6rec_jax.data.features.value_factors import ValueFactors
from tests.data.fold import fit_windows

Ratings = list[tuple[int, int, float]]


def ridge(rows: list[np.ndarray], targets: list[float], weight: float, rank: int) -> np.ndarray:
    """argmin Σ (target - row · x)² + weight · |x|²."""
    gram = weight * np.eye(rank)
    moment = np.zeros(rank)
    for row, target in zip(rows, targets, strict=True):
        gram += np.outer(row, row)
        moment += row * target
    return np.linalg.solve(gram, moment)


def reference_fit(ratings, num_users, factors, smoothing, weight):
    """Mean, item biases and item factors, rating by rating, from the factors to start with."""
    num_items, rank = factors.shape
    mean = sum(value for *_, value in ratings) / len(ratings)
    of_user, of_item = np.zeros(num_users), np.zeros(num_items)
    for _ in range(3):
        for item in range(num_items):
            rest = [v - mean - of_user[u] for u, i, v in ratings if i == item]
            of_item[item] = sum(rest) / (len(rest) + smoothing)
        for user in range(num_users):
            rest = [v - mean - of_item[i] for u, i, v in ratings if u == user]
            of_user[user] = sum(rest) / (len(rest) + smoothing)
    rest = {(u, i): v - mean - of_user[u] - of_item[i] for u, i, v in ratings}
    for _ in range(2):
        tastes = np.array(
            [
                ridge(
                    [factors[i] for u, i in rest if u == user],
                    [r for (u, _), r in rest.items() if u == user],
                    weight,
                    rank,
                )
                for user in range(num_users)
            ]
        )
        factors = np.array(
            [
                ridge(
                    [tastes[u] for u, i in rest if i == item],
                    [r for (_, i), r in rest.items() if i == item],
                    weight,
                    rank,
                )
                for item in range(num_items)
            ]
        )
    return mean, of_item, factors


def some_ratings(rng: np.random.Generator, num_users: int, num_items: int) -> Ratings:
    known = rng.random((num_users, num_items)) < 0.6
    return [(int(u), int(i), float(rng.integers(1, 6))) for u, i in np.argwhere(known)]


def by_user(ratings: Ratings, num_users: int) -> tuple[list[list[int]], list[list[float]]]:
    windows = [[i for u, i, _ in ratings if u == user] for user in range(num_users)]
    values = [[v for u, _, v in ratings if u == user] for user in range(num_users)]
    return windows, values


@pytest.mark.parametrize("rows_at_once", [2, 65_536])
def test_fits_equal_loops(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fit, and a second one that goes on from it with two more items."""
    monkeypatch.setattr(value_factors, "_ROWS_AT_ONCE", rows_at_once)
    ratings = some_ratings(np.random.default_rng(3), 7, 9)
    monkeypatch.setattr(value_factors, "REGULARIZATION", 0.7)
    earlier = [rating for rating in ratings if rating[1] < 7]
    start = np.random.default_rng(0).normal(0.0, 0.1, (7, 2))
    found = fit_windows(ValueFactors.none(2), *by_user(earlier, 7), 7, 1.5)
    expected = reference_fit(earlier, 7, start, 1.5, 0.7)
    for got, wanted in zip(
        (found.mean, found.item_bias, found.item_factors), expected, strict=True
    ):
        # float64 in another order of operations.
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
    found = fit_windows(found, *by_user(ratings, 7), 9, 1.5)
    start = np.concatenate([expected[2], np.zeros((2, 2))])
    mean, bias, factors = reference_fit(ratings, 7, start, 1.5, 0.7)
    np.testing.assert_allclose(found.item_bias, bias, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.item_factors, factors, rtol=1e-9, atol=1e-12)

    # A user nobody has seen, folded in from three values, one of an item of after the fit.
    window, values = np.array([2, 5, 9]), np.array([5.0, 1.0, 3.0])
    rest = [values[n] - mean - bias[window[n]] for n in range(2)]
    own = sum(rest) / (2 + 1.5)
    taste = ridge([factors[2], factors[5]], [r - own for r in rest], 0.7, 2)
    answers = found.expected(np.array([0, 9, 8]), window, values, 1.5)
    assert answers[1] == pytest.approx(mean + own, rel=1e-9)
    for place in (0, 8):
        wanted = mean + own + bias[place] + factors[place] @ taste
        assert answers[place // 4] == pytest.approx(wanted, rel=1e-9)
