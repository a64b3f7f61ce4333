"""Repeats and new items apart, against loops."""

from types import SimpleNamespace

import numpy as np
import pytest

from m6rec_jax.jobs.past_items import hidden_items, own_counts
from m6rec_jax.jobs.retrieval import RetrievalPredictions, _of_kinds
from m6rec_jax.jobs.scoring import ScoringPredictions, scores_apart, scoring_metrics
from m6rec_jax.metrics import classification, ranking

HAD = {(0, 1), (0, 2), (1, 3), (2, 0)}


def evaluation(part: str = "test", repeats_count: bool = True) -> SimpleNamespace:
    pairs = np.array(sorted(HAD))
    data = SimpleNamespace(
        part=part,
        repeats_count=repeats_count,
        past_events=lambda: (pairs[:, 0], pairs[:, 1]),
        prepared=lambda: SimpleNamespace(catalogue=lambda: SimpleNamespace(items=range(9))),
    )
    rows = [{"user_index": user, "item_indices": [3]} for user in (0, 0, 1)]
    past = [np.array(own) for own in ([1], [2, 1, 2], [3, 0])]
    return SimpleNamespace(
        data=data,
        once=lambda _, make: make(),
        rows=lambda _: rows,
        past_items=lambda: past,
        ks=(6,),
    )


@pytest.fixture
def predictions() -> ScoringPredictions:
    random = np.random.default_rng(0)
    users, items, labels = (random.integers(0, n, 200) for n in (3, 4, 2))
    probabilities = random.random(200)
    return ScoringPredictions(users, items, labels, labels, probabilities, probabilities)


def test_candidates(predictions: ScoringPredictions) -> None:
    found = scores_apart(evaluation(), predictions, scoring_metrics)
    pairs = zip(predictions.users.tolist(), predictions.items.tolist(), strict=True)
    repeats = np.array([pair in HAD for pair in pairs])
    for name, rows in (("repeats", repeats), ("new_items", ~repeats)):
        auc = classification.auc(predictions.labels[rows], predictions.probabilities[rows])
        assert found[f"{name}/auc"] == auc
        assert found[f"{name}/num_examples"] == rows.sum()
    assert scores_apart(evaluation("train"), predictions, scoring_metrics) == {}
    assert scores_apart(evaluation(repeats_count=False), predictions, scoring_metrics) == {}
    predictions.labels[repeats] = 1  # of which no AUC is known
    found = scores_apart(evaluation(), predictions, scoring_metrics)
    assert "repeats/auc" not in found
    assert "new_items/auc" in found


def test_ranks() -> None:
    users = np.array([0, 1, 2])
    targets = np.array([[1, 3, -1], [2, -1, -1], [0, -1, -1]])
    ranks = np.array([[5, 6, 0], [7, 0, 0], [8, 0, 0]])
    nothing = np.zeros((3, 0))
    found = _of_kinds(
        evaluation(), RetrievalPredictions(users, targets, ranks, nothing, nothing, nothing), ranks
    )
    kinds = {"repeats": [[5, 0, 0], [8, 0, 0]], "new_items": [[0, 6, 0], [7, 0, 0]]}
    assert found == {
        f"{kind}/{name}": value
        for kind, own in kinds.items()
        for name, value in {
            **ranking.ranking_metrics(np.array(own), (6,)),
            "num_examples": 2.0,
        }.items()
    }


def test_what_is_hidden_and_counted() -> None:
    asked = np.array([1, 0, 0]), np.array([[3, -1], [3, 1], [3, 0]])
    assert [own.tolist() for own in hidden_items(evaluation(), *asked)] == [[]] * 3
    hidden = hidden_items(evaluation(repeats_count=False), *asked)
    assert [own.tolist() for own in hidden] == [[0], [], [1, 2]]
    counted = own_counts(evaluation())
    assert counted is not None
    assert counted.of(np.array([0, 1]), np.array([2, 2])).tolist() == [1, 0]
    assert own_counts(evaluation(repeats_count=False)) is None
