"""Figures of classifiers against their definitions."""

import numpy as np
import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.multiclass import multiclass_auc, multiclass_metrics


def f1_by_hand(labels, predicted, k):
    hits = sum(a == b == k for a, b in zip(labels, predicted, strict=True))
    asked, given = (labels == k).sum(), (predicted == k).sum()
    return 2 * hits / (asked + given)


def auc_by_hand(positive, scores):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return np.mean(pairs)


def test_against_definitions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    probabilities = rng.dirichlet(np.ones(5), 60)  # class 4 never occurs
    found = multiclass_metrics(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    assert found["accuracy"] == (predicted == labels).mean()
    classes = sorted({*labels.tolist(), *predicted.tolist()})
    by_hand = np.mean([f1_by_hand(labels, predicted, k) for k in classes])
    assert found["macro_f1"] == pytest.approx(by_hand)
    of_class = [auc_by_hand(labels == k, probabilities[:, k]) for k in range(4)]
    assert found["auc"] == pytest.approx(np.mean(of_class))
    chosen = probabilities[np.arange(60), labels]
    assert found["log_loss"] == pytest.approx(-np.log(chosen).mean())
    assert found["majority_share"] == np.bincount(labels).max() / 60


def test_two_classes_have_the_plain_auc():
    labels, p = np.array([0, 1, 0, 1, 1]), np.array([0.2, 0.7, 0.5, 0.5, 0.1])
    found = multiclass_auc(labels, np.stack([1 - p, p], axis=1))
    assert found == pytest.approx(auc_by_hand(labels == 1, p))


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.zeros((0, 2)), "no examples"),
        ([0, 1], np.zeros((2, 1)), "must be"),
        ([0], np.zeros((2, 2)), "must be"),
        ([0, 2], np.full((2, 2), 0.5), "label 2 at position 1 is none of the 2 classes"),
        ([0, -1], np.full((2, 2), 0.5), "label -1"),
        ([1, 1], np.full((2, 2), 0.5), "all 2 labels are 1"),
        ([0, 1], np.full((2, 2), np.nan), "4 probabilities are NaN"),
    ],
)
def test_degenerate_input_is_told(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        multiclass_metrics(labels, probabilities)
