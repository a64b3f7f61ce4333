"""Linear models of frozen features: what they can find, and that the test part chooses nothing."""

import numpy as np
import pytest

from benchmarks import frozen_states

SIZES = {"train": 400, "validation": 300, "test": 300}


def drawn(classes: int, informative: bool, seed: int = 0):
    """(features, labels) of the parts; informative: the first columns lean towards the class."""
    rng = np.random.default_rng(seed)
    features, labels = {}, {}
    for part, size in SIZES.items():
        labels[part] = rng.integers(0, classes, size)
        values = rng.normal(size=(size, 30))
        if informative:
            values[np.arange(size), labels[part]] += 4
        features[part] = values
    return features, labels


@pytest.mark.parametrize("classes", [2, 5])
def test_what_is_there_is_found(classes):
    features, labels = drawn(classes, informative=True)
    # 4 standard deviations apart: the best possible AUC is .998.
    assert frozen_states.linear_model(features, labels)["auc"] > 0.97
    features, labels = drawn(classes, informative=False)
    # Of 300 rows chance has a standard deviation of .035 at most.
    assert abs(frozen_states.linear_model(features, labels)["auc"] - 0.5) < 0.12


def test_the_penalty_is_chosen_by_validation_rows(monkeypatch):
    features, labels = drawn(2, informative=True)
    chosen = frozen_states.linear_model(features, labels)["inverse_penalty"]
    rng = np.random.default_rng(1)
    # Neither test rows nor their labels move it.
    features["test"] = rng.normal(size=features["test"].shape)
    labels["test"] = rng.integers(0, 2, SIZES["test"])
    assert frozen_states.linear_model(features, labels)["inverse_penalty"] == chosen
