"""Reranking: the order of candidates by a scorer that reads them with their co-occurrence."""

import numpy as np
import pytest

from m6rec_jax.data.co_occurrence import CoOccurrence
from m6rec_jax.engine.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.reranking import Reranker
from m6rec_jax.errors import DataError

TEXTS = ["Alpha", "Beta", "Gamma", "Delta"]
HISTORIES = [["30 years", "liked Alpha"], ["40 years", "liked Delta"]]


class FakeScorer:
    """Knows the probability of each text, and keeps what it was asked."""

    def __init__(self, probabilities: dict[str, float]) -> None:
        self.probabilities = probabilities
        self.asked: list = []

    def score_requests(self, histories, candidates, tasks=None):
        self.asked += zip(histories, candidates, strict=True)
        return [np.array([self.probabilities[t] for t in own], np.float32) for own in candidates]


def by_scorer(co_occurrence, scorer, similarity_weight=0.0) -> Reranker:
    weights = {"similarity_weight": similarity_weight, "co_occurrence_weight": 0.0}
    return Reranker(co_occurrence, TEXTS, scorer, **weights)


@pytest.fixture
def co_occurrence() -> CoOccurrence:
    users, items = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 0, 2, 1])
    return CoOccurrence.counted(users, items, len(TEXTS))


@pytest.fixture
def found() -> TopK:
    return TopK(
        np.array([[1, 2, 3], [0, 2, NO_ITEM]], np.int32),
        np.array([[0.9, 0.8, 0.7], [0.5, 0.4, -np.inf]], np.float32),
    )


def test_the_scorer_orders_and_reads_co_occurrence(co_occurrence, found):
    scorer = FakeScorer(
        {
            "near 2: Beta": 0.1,
            "near 1: Gamma": 0.4,
            "not near: Delta": 0.2,
            "not near: Alpha": 0.3,
            "not near: Gamma": 0.6,
        }
    )
    best = by_scorer(co_occurrence, scorer).rerank(HISTORIES, [[0], [3]], [[0], [3]], found)
    assert best.ids.tolist() == [[2, 3, 1], [2, 0, NO_ITEM]]
    np.testing.assert_allclose(np.exp(best.scores), [[0.4, 0.2, 0.1], [0.6, 0.3, 0]], rtol=1e-6)
    assert scorer.asked[0] == (HISTORIES[0], ["near 2: Beta", "near 1: Gamma", "not near: Delta"])
    assert scorer.asked[1] == (HISTORIES[1], ["not near: Alpha", "not near: Gamma"])


def test_seen_items_take_no_rank(co_occurrence, found):
    scorer = FakeScorer(dict.fromkeys(["near 1: Beta", "not near: Gamma", "not near: Delta"], 0.5))
    scorer.probabilities["not near: Alpha"] = 0.5
    by_scorer(co_occurrence, scorer).rerank(HISTORIES, [[0], [3]], [[2], []], found)
    assert scorer.asked[0][1][0] == "near 1: Beta"


def test_equal_candidates_stay_in_order_and_similarity_counts(co_occurrence, found):
    scorer = FakeScorer({})
    scorer.probabilities = {
        f"{words}: {text}": 0.25 for words in ("near 1", "near 2", "not near") for text in TEXTS
    }
    scorer.probabilities["not near: Delta"] = 0.5
    arguments = (HISTORIES, [[0], [3]], [[], []], found)
    best = by_scorer(co_occurrence, scorer).rerank(*arguments)
    assert best.ids[0].tolist() == [3, 1, 2]
    # log 2 is .69: less than 10 times the .2 by which Beta is more similar.
    weighted = by_scorer(co_occurrence, scorer, 10.0).rerank(*arguments)
    assert weighted.ids[0].tolist() == [1, 2, 3]
    assert weighted.scores[0, 0] == pytest.approx(np.log(0.25) + 9.0)
    assert weighted.scores[1, 2] == -np.inf


def test_without_a_scorer_co_occurrence_and_similarity_decide(co_occurrence, found):
    reranker = Reranker(co_occurrence, TEXTS, similarity_weight=2.0, co_occurrence_weight=3.0)
    best = reranker.rerank(HISTORIES, [[0], [3]], [[0], [3]], found)
    # Alpha stood next to Gamma twice, two places from Beta once: 2.5 and the smoothing of 20.
    near = {1: 0.5 / 22.5, 2: 2.0 / 22.5, 3: 0.0}
    expected = [2 * s + 3 * np.log(near[i] + 1e-4) for i, s in ((2, 0.8), (1, 0.9), (3, 0.7))]
    assert best.ids.tolist() == [[2, 1, 3], [0, 2, NO_ITEM]]
    np.testing.assert_allclose(best.scores[0], expected, rtol=1e-6)


def test_what_does_not_belong_together_is_refused(co_occurrence, found):
    with pytest.raises(DataError, match="4 items, the catalogue has 2"):
        Reranker(co_occurrence, TEXTS[:2])
    with pytest.raises(DataError, match="1 histories, 2 lists of recent items"):
        Reranker(co_occurrence, TEXTS).rerank(HISTORIES[:1], [[0], [3]], [[], []], found)
