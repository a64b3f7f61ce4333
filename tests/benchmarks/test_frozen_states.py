"""Linear models of frozen features: what they can find, and that the test part chooses nothing."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

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


def test_the_penalty_is_chosen_by_validation_rows():
    """Where the test rows would choose another one."""
    features, labels = drawn(2, informative=False, seed=3)
    for part, size in SIZES.items():
        features[part][np.arange(size), labels[part]] += 0.4
    scaler = StandardScaler().fit(features["train"])
    scaled = {part: scaler.transform(values) for part, values in features.items()}
    aucs: dict[str, dict[float, float]] = {"validation": {}, "test": {}}
    for penalty in frozen_states.PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=2_000).fit(scaled["train"], labels["train"])
        for part, found in aucs.items():
            scores = model.decision_function(scaled[part])
            found[penalty] = roc_auc_score(labels[part], scores)
    best = {part: max(found, key=found.__getitem__) for part, found in aucs.items()}
    assert best["validation"] != best["test"]
    figures = frozen_states.linear_model(features, labels)
    assert figures["inverse_penalty"] == best["validation"]
    assert figures["auc"] == pytest.approx(aucs["test"][best["validation"]], abs=1e-6)
