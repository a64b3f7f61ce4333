"""Classification metrics against brute force."""

import itertools

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
@settings(max_examples=60)
def test_auc_and_user_auc_equal_brute_force(rows):
    users, labels, scores = map(list, zip(*rows, strict=True))
    if len(set(labels)) == 2:
        assert classification.auc(labels, scores) == pytest.approx(brute_auc(labels, scores))
    expected = []
    for user in sorted(set(users)):
        own = [(y, s) for u, y, s in rows if u == user]
        if len({y for y, _ in own}) == 2:
            expected.append(brute_auc(*zip(*own, strict=True)))
    np.testing.assert_allclose(classification.per_user_auc(users, labels, scores), expected)
    if expected:
        metrics, number = classification.ordering_metrics(users, labels, scores)
        assert metrics["user_averaged_auc"] == pytest.approx(np.mean(expected))
        assert number == len(expected)


def test_log_loss():
    assert classification.log_loss([1, 0], [0.8, 0.4]) == pytest.approx(
        -(np.log(0.8) + np.log(0.6)) / 2
    )
    assert np.isfinite(classification.log_loss([1, 0], [0.0, 1.0]))


def test_platt_scaling_finds_the_scale_and_the_offset_that_made_the_labels():
    rng = np.random.default_rng(0)
    odds = rng.normal(0.0, 2.0, 40_000)
    labels = (rng.random(40_000) < 1 / (1 + np.exp(-(0.5 * odds - 1.0)))).astype(int)
    assert classification.platt_scaling(labels, odds) == pytest.approx((0.5, -1.0), abs=0.05)


def test_calibration_table_equals_loops():
    rng = np.random.default_rng(1)
    p = rng.beta(2, 5, 500)
    y = (rng.random(500) < p**2).astype(int)
    table = classification.calibration_table(y, p, 7)
    assert len(table.counts) == 7
    edges = np.quantile(p, np.linspace(0.0, 1.0, 8))
    error = 0.0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (p <= high) & ((p >= low) if i == 0 else (p > low))
        assert inside.sum() == table.counts[i]
        assert table.mean_predicted[i] == pytest.approx(p[inside].mean())
        assert table.mean_observed[i] == pytest.approx(y[inside].mean())
        error += inside.sum() / 500 * abs(p[inside].mean() - y[inside].mean())
    assert table.expected_calibration_error == pytest.approx(error)
    assert table.counts.sum() == 500
    assert table.counts.max() - table.counts.min() <= 2


def f1_by_hand(labels, predicted, k):
    hits = sum(a == b == k for a, b in zip(labels, predicted, strict=True))
    asked, given = (labels == k).sum(), (predicted == k).sum()
    return 2 * hits / (asked + given)


def test_multiclass_against_definitions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    probabilities = rng.dirichlet(np.ones(5), 60)  # class 4 never occurs
    found = classification.multiclass_metrics(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    assert found["accuracy"] == (predicted == labels).mean()
    classes = sorted({*labels.tolist(), *predicted.tolist()})
    by_hand = np.mean([f1_by_hand(labels, predicted, k) for k in classes])
    assert found["macro_f1"] == pytest.approx(by_hand)
    of_class = [brute_auc(labels == k, probabilities[:, k]) for k in range(4)]
    assert found["auc"] == pytest.approx(np.mean(of_class))
    chosen = probabilities[np.arange(60), labels]
    assert found["log_loss"] == pytest.approx(-np.log(chosen).mean())
    assert found["majority_share"] == np.bincount(labels).max() / 60


ONE_OF_TWO = (classification.auc, classification.platt_scaling)
SEVERAL = (classification.multiclass_metrics,)


@pytest.mark.parametrize(
    ("metrics", "labels", "values"),
    [
        (ONE_OF_TWO, [1, 1], [0.1, 0.2]),
        (ONE_OF_TWO, [], []),
        (ONE_OF_TWO, [0, 2], [0.1, 0.2]),
        (ONE_OF_TWO, [0, 1], [0.1, np.nan]),
        (ONE_OF_TWO, [0, 1], [0.1]),
        (SEVERAL, [], np.zeros((0, 2))),
        (SEVERAL, [0, 1], np.zeros((2, 1))),
        (SEVERAL, [0], np.zeros((2, 2))),
        (SEVERAL, [0, 2], np.full((2, 2), 0.5)),
        (SEVERAL, [0, -1], np.full((2, 2), 0.5)),
        (SEVERAL, [0, 1], np.full((2, 2), np.nan)),
    ],
)
def test_what_does_not_fit_is_refused(metrics, labels, values):
    for metric in metrics:
        with pytest.raises(DataError):
            metric(labels, values)
