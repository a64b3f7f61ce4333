"""Baselines against loops."""

import dataclasses

import numpy as np
import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import classification, ranking
from m6rec_jax.metrics.baselines import (
    MEAN_BASELINES,
    MeanBaselines,
    UserItemCounts,
    popularity_ranks,
)


@pytest.fixture
def events():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 9, 200), rng.integers(0, 7, 200)
    return users, items, (rng.random(200) < 0.2 + 0.08 * items).astype(int)


def test_smoothed_means_equal_loops(events):
    users, items, labels = events
    fitted = MeanBaselines.fit(users, items, labels, 10, 8)
    mean = labels.mean()
    for item in range(8):
        own = labels[items == item]
        assert fitted.item_means[item] == pytest.approx((own.sum() + 5 * mean) / (len(own) + 5))
        assert fitted.item_counts[item] == len(own)
    assert fitted.user_means[9] == fitted.item_means[7] == pytest.approx(mean)  # never seen
    both = fitted.scores(np.array([2]), np.array([3]))["user_and_item_mean"][0]
    assert both == pytest.approx(fitted.user_means[2] + fitted.item_means[3] - mean)


def test_scoring_metrics(events):
    users, items, labels = events
    fitted = MeanBaselines.fit(users, items, labels, 10, 8)
    metrics = fitted.scoring_metrics(users, items, labels)
    assert set(metrics) == set(MEAN_BASELINES)
    assert metrics["user_mean"]["auc"] == classification.auc(labels, fitted.user_means[users])
    assert metrics["item_mean"]["auc"] == classification.auc(labels, fitted.item_means[items])
    assert "log_loss" not in metrics["popularity"]
    assert metrics["user_and_item_mean"]["auc"] > metrics["popularity"]["auc"]


def test_popularity_ranks_leave_out_what_was_seen():
    items = np.array([0] * 5 + [1] * 4 + [2] * 3 + [3])
    counts = np.bincount(items, minlength=5)
    targets = np.array([[2, -1], [3, 0]])
    ranks = popularity_ranks(counts, targets, [np.array([0]), np.array([1])])
    assert ranks.tolist() == [[2, ranking.NO_TARGET], [3, 1]]


def test_what_a_user_acted_on_before_comes_first(events):
    users, items, labels = events
    own = UserItemCounts.fit(users, items)
    fitted = dataclasses.replace(MeanBaselines.fit(users, items, labels, 10, 8), own_counts=own)
    pairs = [(user, item) for user in range(10) for item in range(8)]
    asked_users, asked_items = (np.array(column) for column in zip(*pairs, strict=True))
    times = [sum((users == user) & (items == item)) for user, item in pairs]
    assert own.of(asked_users, asked_items).tolist() == times
    scores = fitted.scores(asked_users, asked_items)["user_item_times"].reshape(10, 8)
    popularity = np.bincount(items, minlength=8)
    for user in range(10):
        expected = sorted(range(8), key=lambda i: (times[8 * user + i], popularity[i], -i))
        assert np.argsort(scores[user][::-1], kind="stable").tolist() == [7 - i for i in expected]
        targets = np.arange(8)[:, None]
        ranks = popularity_ranks(popularity, targets, [[]] * 8, lambda _, u=user: own.of_user(u))
        assert [expected[-rank] for rank in ranks[:, 0]] == list(range(8))
    metrics = fitted.scoring_metrics(users, items, labels)
    assert set(metrics["user_item_times"]) == {"auc", "user_averaged_auc"}
    assert UserItemCounts.fit(users[:0], items[:0]).of(users, items).sum() == 0


def test_there_must_be_training_events():
    none = np.array([], int)
    with pytest.raises(DataError):
        MeanBaselines.fit(none, none, none, 2, 2)
