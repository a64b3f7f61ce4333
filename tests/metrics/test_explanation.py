"""USR, FMR, FCR and DIV: by hand, and DIV against all pairs."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import explanation

EXPLANATIONS = [
    "the pool is great",
    "The Pool, is great .",
    "the pool is great",
    "swimming pools and a bar",
    "",
]
FEATURES = ["pool", "pool", "bar", "bar", "pool"]


def test_unique_sentences_compare_words_in_their_case():
    assert explanation.unique_sentence_ratio(EXPLANATIONS) == pytest.approx(4 / 5)
    assert explanation.unique_sentence_ratio(["a  b", "a b ", "a B"]) == pytest.approx(2 / 3)
    assert explanation.unique_sentence_ratio(["", "", "👍"]) == pytest.approx(2 / 3)


def test_features_match_their_own_record():
    # The first, the second and the fourth have it; "pools" has no "pool".
    assert explanation.feature_matching_ratio(EXPLANATIONS, FEATURES) == pytest.approx(3 / 5)
    assert explanation.feature_matching_ratio(["bar"], ["pool"]) == 0


def test_features_of_several_words_and_inside_each_other():
    features = ["battery life", "battery", "Wi-Fi", "screen"]
    sets = explanation.feature_sets(["good battery  LIFE", "the wi fi", "battery."], features)
    assert sets == [{("battery", "life"), ("battery",)}, {("wi", "fi")}, {("battery",)}]
    ratio = explanation.feature_matching_ratio(["good battery life"], ["battery"])
    assert ratio == 1


def test_coverage():
    assert explanation.feature_coverage_ratio(
        EXPLANATIONS, ["pool", "bar", "view", "bed"]
    ) == pytest.approx(2 / 4)
    # Spellings of one feature are one.
    assert explanation.feature_coverage_ratio(["x"], ["x", "X", "y"]) == pytest.approx(1 / 2)


def test_diversity_by_hand():
    sets = explanation.feature_sets(EXPLANATIONS, ["pool", "bar", "and"])
    # Pools: three of five texts, three of ten pairs; the others stand in one text only.
    assert explanation.feature_diversity(sets) == pytest.approx(3 / 10)
    assert explanation.feature_diversity([{"a", "b"}, {"a", "b"}]) == 2
    assert explanation.feature_diversity([set(), set()]) == 0


@given(st.lists(st.frozensets(st.integers(0, 6), max_size=5), min_size=2, max_size=9))
@settings(max_examples=150, deadline=None)
def test_diversity_equals_all_pairs(sets):
    shared = [len(a & b) for a, b in itertools.combinations(sets, 2)]
    assert explanation.feature_diversity(sets) == pytest.approx(np.mean(shared))


def test_diversity_of_many_texts_does_not_walk_their_pairs():
    sets = [frozenset({i % 7, 7 + i % 3}) for i in range(200_000)]
    start = time.perf_counter()
    value = explanation.feature_diversity(sets)
    # 2 × 10^10 pairs; one count takes a tenth of a second.
    assert time.perf_counter() - start < 10
    assert value == pytest.approx(1 / 7 + 1 / 3, rel=1e-3)


@given(st.lists(st.text(), min_size=2, max_size=5), st.lists(st.text(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_text(texts, names):
    names = [name for name in names if explanation.phrase_key(name)] or ["a"]
    sets = explanation.feature_sets(texts, names)
    assert explanation.feature_diversity(sets) >= 0
    assert 0 <= explanation.feature_coverage_ratio(texts, names) <= 1
    assert 0 < explanation.unique_sentence_ratio(texts) <= 1
    # Every feature is found where it stands alone, and between signs.
    for name in names:
        assert explanation.feature_matching_ratio([f"! {name} !"], [name]) == 1


def test_refusals():
    with pytest.raises(DataError, match="USR: there are no explanations"):
        explanation.unique_sentence_ratio([])
    with pytest.raises(DataError, match="2 texts, but 1 features"):
        explanation.feature_matching_ratio(["a", "b"], ["a"])
    with pytest.raises(DataError, match="FMR: the feature '!' has no word"):
        explanation.feature_matching_ratio(["a"], ["!"])
    with pytest.raises(DataError, match="got a NoneType"):
        explanation.feature_matching_ratio(["a"], [None])
    with pytest.raises(DataError, match="there are no features"):
        explanation.feature_coverage_ratio(["a"], [])
    with pytest.raises(DataError, match="pairs of explanations, but there are 1"):
        explanation.feature_diversity([{"a"}])
