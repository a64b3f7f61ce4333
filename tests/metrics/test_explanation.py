"""USR, FMR, FCR, DIV and PETER's likeness: by hand, DIV against all pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.metrics import explanation, generation

EXPLANATIONS = [
    "the pool is great",
    "The Pool, is great .",
    "the pool is great",
    "swimming pools and a bar",
    "",
]
FEATURES = ["pool", "pool", "bar", "bar", "pool"]


def test_shares_by_hand():
    # Sentences are compared in their case.
    assert explanation.unique_sentence_ratio(EXPLANATIONS) == pytest.approx(4 / 5)
    # The first, the second and the fourth have their feature; "pools" has no "pool".
    assert explanation.feature_matching_ratio(EXPLANATIONS, FEATURES) == pytest.approx(3 / 5)
    found = explanation.feature_coverage_ratio(EXPLANATIONS, ["pool", "bar", "view", "bed"])
    assert found == pytest.approx(2 / 4)
    # Spellings of one feature are one.
    assert explanation.feature_coverage_ratio(["x"], ["x", "X", "y"]) == pytest.approx(1 / 2)


def test_features_of_several_words_and_inside_each_other():
    features = ["battery life", "battery", "Wi-Fi", "screen"]
    sets = explanation.feature_sets(["good battery  LIFE", "the wi fi", "battery."], features)
    assert sets == [{("battery", "life"), ("battery",)}, {("wi", "fi")}, {("battery",)}]
    assert explanation.feature_matching_ratio(["good battery life"], ["battery"]) == 1


@given(st.lists(st.frozensets(st.integers(0, 6), max_size=5), min_size=2, max_size=9))
@settings(max_examples=150)
def test_diversity_equals_all_pairs(sets):
    shared = [len(a & b) for a, b in itertools.combinations(sets, 2)]
    assert explanation.feature_diversity(sets) == pytest.approx(np.mean(shared))


@given(st.lists(st.text(), min_size=2, max_size=5), st.lists(st.text(), min_size=1, max_size=4))
@settings(max_examples=60)
def test_any_text(texts, names):
    names = [name for name in names if explanation.phrase_key(name)] or ["a"]
    assert 0 <= explanation.feature_coverage_ratio(texts, names) <= 1
    # Every feature is found where it stands between signs.
    for name in names:
        assert explanation.feature_matching_ratio([f"! {name} !"], [name]) == 1


def test_peter_form():
    known = explanation.frequent_words(["the pool was nice", "the pool", "the view"], 2)
    assert known == {"the", "pool"}
    assert explanation.peter_form("the  big pool", known) == "the <unk> pool"
    assert explanation.peter_form("the " * 20, known).split() == ["the"] * 15


def test_peter_rouge_takes_sets():
    # Sets {a, b} and {a, c}: one of two, both ways.
    assert explanation.peter_rouge(["a a b"], ["a c"]) == pytest.approx(50.0)
    # Bigrams {a a, a b} and {a b}: precision 1/2, recall 1, F 2/3.
    assert explanation.peter_rouge(["a a b"], ["a b"], 2) == pytest.approx(100 * 2 / 3)
    # Without repeated words it is plain ROUGE.
    pytest.importorskip("rouge_score")
    texts, references = ["a b c d", "e"], ["b c f", "g"]
    for order, value in generation.rouge(texts, references, (1, 2)).items():
        assert explanation.peter_rouge(texts, references, order) == pytest.approx(value)


def test_two_unknown_words_match_and_punctuation_belongs_to_words():
    pytest.importorskip("sacrebleu")
    known = {"the", "pool", "good"}
    found = explanation.peter_metrics(["the lobby", "good."], ["the terrace", "good"], known)
    # "good." is not "good", and unknown.
    assert found["rouge_1"] == pytest.approx(50.0)
    assert found["bleu_1"] == pytest.approx(100 * 2 / 3)
    assert found["usr"] == 1.0
