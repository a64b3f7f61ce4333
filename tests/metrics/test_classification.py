"""Classification metrics against brute force."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import classification


def brute_auc(labels, scores):
    """Share of (positive, negative) pairs in the right order, ties one half."""
    pairs = [
        (p, n)
        for (p, a), (n, b) in itertools.product(
            zip(scores, labels, strict=True), zip(scores, labels, strict=True)
        )
        if a == 1 and b == 0
    ]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


EXAMPLES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=30
)


@given(EXAMPLES)
@settings(max_examples=60, deadline=None)
def test_auc_and_user_auc_equal_brute_force(rows):
    users, labels, scores = map(list, zip(*rows, strict=True))
    if len(set(labels)) == 2:
        assert classification.auc(labels, scores) == pytest.approx(brute_auc(labels, scores))
    expected = {}
    for user in sorted(set(users)):
        own = [(y, s) for u, y, s in rows if u == user]
        if len({y for y, _ in own}) == 2:
            expected[user] = brute_auc(*zip(*own, strict=True))
    result = classification.per_user_auc(users, labels, scores)
    assert result.users.tolist() == list(expected)
    np.testing.assert_allclose(result.values, list(expected.values()))
    assert result.num_skipped == len(set(users)) - len(expected)
    if expected:
        mean = classification.user_averaged_auc(users, labels, scores)
        assert mean == pytest.approx(np.mean(list(expected.values())))


def test_user_averaged_auc_is_not_weighted_by_examples():
    users = ["a"] * 2 + ["b"] * 4
    labels = [1, 0, 1, 0, 0, 0]
    scores = [0.9, 0.1, 0.1, 0.9, 0.9, 0.9]
    assert classification.user_averaged_auc(users, labels, scores) == 0.5


def test_hundred_thousand_users_take_seconds():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 100_000, 2_000_000)
    labels = rng.integers(0, 2, users.size)
    start = time.perf_counter()
    value = classification.user_averaged_auc(users, labels, rng.normal(size=users.size))
    assert time.perf_counter() - start < 10
    assert value == pytest.approx(0.5, abs=0.01)


def test_weighted_auc_equals_repeating_examples():
    labels, scores, weights = [1, 0, 1, 0], [0.3, 0.2, 0.6, 0.5], [1, 2, 3, 1]
    repeated = np.repeat(np.arange(4), weights)
    assert classification.auc(labels, scores, weights) == pytest.approx(
        classification.auc(np.take(labels, repeated), np.take(scores, repeated))
    )


def test_log_loss():
    assert classification.log_loss([1, 0], [0.8, 0.4]) == pytest.approx(
        -(np.log(0.8) + np.log(0.6)) / 2
    )
    assert np.isfinite(classification.log_loss([1, 0], [0.0, 1.0]))


@pytest.mark.parametrize("bins", ["uniform", "quantile"])
def test_calibration_table_equals_loops(bins):
    rng = np.random.default_rng(1)
    p = rng.beta(2, 5, 500)
    y = (rng.random(500) < p**2).astype(int)
    table = classification.calibration_table(y, p, 7, bins)
    assert table.counts.sum() == 500
    error = 0.0
    for i, (low, high) in enumerate(zip(table.lower, table.upper, strict=True)):
        if bins == "uniform":
            inside = (p >= low) & ((p <= high) if i == len(table.lower) - 1 else (p < high))
        else:
            inside = (p <= high) & ((p >= low) if i == 0 else (p > low))
        assert inside.sum() == table.counts[i]
        assert table.mean_predicted[i] == pytest.approx(p[inside].mean())
        assert table.mean_observed[i] == pytest.approx(y[inside].mean())
        error += inside.sum() / 500 * abs(p[inside].mean() - y[inside].mean())
    assert classification.expected_calibration_error(y, p, 7, bins) == pytest.approx(error)
    if bins == "quantile":
        assert table.counts.max() - table.counts.min() <= 2


@pytest.mark.parametrize(
    ("values", "counts", "positives"),
    [
        ((0.1, 0.5, 0.9), (100, 100, 100), (10, 90, 50)),
        ((0.1, 0.9), (95, 5), (0, 5)),
        ((0.1, 0.9), (5, 95), (0, 95)),
    ],
)
def test_quantile_bins_keep_unlike_probabilities_apart(values, counts, positives):
    p = np.repeat(values, counts)
    y = np.concatenate([np.arange(n) < k for n, k in zip(counts, positives, strict=True)])
    table = classification.calibration_table(y.astype(int), p, bins="quantile")
    assert table.counts.tolist() == list(counts)
    np.testing.assert_allclose(table.mean_predicted, values)
    np.testing.assert_allclose(table.mean_observed, np.divide(positives, counts))


def test_perfectly_calibrated_constant():
    table = classification.calibration_table([1, 0, 0, 0], [0.25] * 4, bins="quantile")
    assert table.counts.tolist() == [4]
    assert table.expected_calibration_error == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification.auc([1, 1], [0.1, 0.2]), "all 2 labels are 1"),
        (lambda: classification.auc([0, 0, 0], [1, 2, 3]), "all 3 labels are 0"),
        (lambda: classification.auc([], []), "no examples"),
        (lambda: classification.auc([0, 2], [1, 2]), "2 at position 1"),
        (lambda: classification.auc([0, 1], [0.1, np.nan]), "1 of 2 scores are NaN, first at 1"),
        (lambda: classification.auc([0, 1], [0.1]), r"shape \(1,\)"),
        (lambda: classification.user_averaged_auc([1, 2], [1, 0], [1, 2]), "none of the 2 users"),
        (lambda: classification.log_loss([0, 1], [0.1, 1.2]), "1.2 at position 1"),
    ],
)
def test_degenerate_input_is_named(call, message):
    with pytest.raises(DataError, match=message):
        call()
