"""Paired differences, against the textbook's formula and against drawing users again."""

import numpy as np
import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.paired import PairedDifference


def test_one_example_each_is_the_usual_standard_error() -> None:
    random = np.random.default_rng(0)
    scores, others = random.normal(size=(2, 50))
    found = PairedDifference.of(np.arange(50), scores, others)
    difference = scores - others
    assert found.mean == pytest.approx(difference.mean())
    assert found.error == pytest.approx(difference.std(ddof=1) / np.sqrt(50))


def test_examples_of_a_user_are_one_draw() -> None:
    """The error is that of a bootstrap over users, and larger than if examples were apart."""
    random = np.random.default_rng(1)
    users = np.repeat(np.arange(80), random.integers(1, 30, 80))
    scores = random.normal(size=80)[users] + 0.3 * random.normal(size=len(users))
    found = PairedDifference.of(users, scores, np.zeros(len(users)))
    sums, counts = np.bincount(users, scores), np.bincount(users)
    drawn = random.integers(80, size=(4_000, 80))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    assert found.error == pytest.approx(means.std(), rel=0.1)
    assert found.error > 2 * scores.std() / np.sqrt(len(users))


def test_verdicts() -> None:
    noise = np.random.default_rng(2).normal(size=100)
    for shift, word, is_loss in ((-1, "worse", True), (1, "better", False), (0, "no more", False)):
        found = PairedDifference.of(np.arange(100), noise + shift, np.zeros(100))
        assert word in found.verdict("log likelihood", "new", "old")
        assert found.is_loss is is_loss


def test_other_examples_are_refused() -> None:
    for users, others in (([1, 2], [0.1, 0.2, 0.3]), ([1, 1], [0.1, 0.2])):
        with pytest.raises(DataError):
            PairedDifference.of(users, others, others)
