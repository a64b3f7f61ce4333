"""Ranking metrics against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import ranking


def brute(top, wanted, k):
    """HR, NDCG and MRR of one list."""
    hits = [1 if item in wanted else 0 for item in top[:k]]
    dcg = sum(h / math.log2(i + 2) for i, h in enumerate(hits))
    ideal = sum(1 / math.log2(i + 2) for i in range(min(k, len(wanted))))
    reciprocal = next((1 / (i + 1) for i, item in enumerate(top) if item in wanted), 0.0)
    return float(any(hits)), dcg / ideal, reciprocal


@st.composite
def lists(draw):
    n = draw(st.integers(1, 5))
    top = [draw(st.permutations(range(8)))[:5] for _ in range(n)]
    wanted = [
        draw(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True)) for _ in range(n)
    ]
    return top, wanted, draw(st.integers(1, 5))


@given(lists())
@settings(max_examples=80)
def test_metrics_equal_brute_force(case):
    top, wanted, k = case
    padded = np.array([w + [-1] * (3 - len(w)) for w in wanted])
    ranks = ranking.target_ranks(top, padded)
    expected = np.mean([brute(t, w, k) for t, w in zip(top, wanted, strict=True)], axis=0)
    values = [
        ranking.hit_rate(ranks, k),
        ranking.ndcg(ranks, k),
        ranking.reciprocal_ranks(ranks).mean(),
    ]
    np.testing.assert_allclose(values, expected)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_ranks_by_score_equal_a_stable_sort(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (6, 9)).astype(float)
    excluded = rng.random((6, 9)) < 0.3
    targets = rng.integers(-1, 9, (6, 2))
    ranks = ranking.ranks_by_score(scores, targets, excluded)
    for i in range(6):
        order = [j for j in np.argsort(-scores[i], kind="stable") if not excluded[i, j]]
        for m, target in enumerate(targets[i]):
            if target < 0:
                assert ranks[i, m] == ranking.NO_TARGET
            elif excluded[i, target]:
                assert ranks[i, m] == ranking.NOT_RANKED
            else:
                assert ranks[i, m] == order.index(target) + 1


def test_one_target_per_user():
    ranks = ranking.target_ranks([[4, 2, 9], [1, 3, -1]], [2, 7])
    assert ranks.tolist() == [2, ranking.NOT_RANKED]
    assert ranking.ranking_metrics(ranks, (1, 2)) == {
        "hit_rate@1": 0.0,
        "ndcg@1": 0.0,
        "hit_rate@2": 0.5,
        "ndcg@2": pytest.approx(0.5 / math.log2(3)),
        "mrr": 0.25,
    }


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_chance_is_the_share_of_all_choices_that_hit(k):
    """Of every set of k places (all, where fewer are ranked), how many hold a wanted item?"""
    rows = [(5, 1), (5, 2), (3, 3)]
    expected = []
    for ranked, wanted in rows:
        chosen = list(itertools.combinations(range(ranked), min(k, ranked)))
        expected.append(sum(min(first) < wanted for first in chosen) / len(chosen))
    found = ranking.chance_hit_rate(*zip(*rows, strict=True), k)
    assert found == pytest.approx(np.mean(expected))


def test_degenerate_input_is_refused():
    for ranks in ([], [[1, 2], [0, 0]]):
        with pytest.raises(DataError):
            ranking.ranking_metrics(ranks, (5,))
    with pytest.raises(DataError):
        ranking.ranks_by_score([[1.0, np.nan]], [0])
