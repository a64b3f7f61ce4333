"""FMR, FCR and DIV: by hand, DIV against all pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.metrics.phrases import phrase_key
from m6rec_jax.metrics.text_metrics import feature_metrics

TEXTS = [
    "the pool is great",
    "The Pool, is great .",
    "the pool is great",
    "swimming pools and a bar",
    "",
]


def test_shares_by_hand():
    features = [["!", "pool"], ["pool", "bar"], ["bar"], ["bar"], ["pool"]]
    # Spellings of one feature are one, and signs are none.
    found = feature_metrics(TEXTS, features, lambda: ["pool", "Pool", "bar", "view", "bed", "?"])
    # The first, the second and the fourth have their feature; "pools" has no "pool".
    assert found == pytest.approx({"fmr": 3 / 5, "fcr": 2 / 4, "div": 3 / 10})
    assert feature_metrics(TEXTS, [[], ["!"], [], [], []], lambda: ["pool"]) == {}


def test_features_of_several_words_and_inside_each_other():
    texts = ["good battery  LIFE", "the wi fi", "battery."]
    features = [["battery"], ["Wi-Fi"], ["battery life"]]
    found = feature_metrics(texts, features, lambda: ["battery life", "battery", "Wi-Fi", "screen"])
    assert found == pytest.approx({"fmr": 2 / 3, "fcr": 3 / 4, "div": 1 / 3})


@given(st.lists(st.frozensets(st.sampled_from("abcdefg")), min_size=2, max_size=9))
def test_diversity_equals_all_pairs(sets):
    shared = [len(one & other) for one, other in itertools.combinations(sets, 2)]
    texts = [" ".join(of) for of in sets]
    found = feature_metrics(texts, [["a"]] * len(texts), lambda: "abcdefg")
    assert found["div"] == pytest.approx(np.mean(shared))


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_every_feature_is_found_where_it_stands_between_signs(names):
    names = [name for name in names if phrase_key(name)] or ["a"]
    texts = [f"! {name} !" for name in names]
    found = feature_metrics(texts, [[name] for name in names], lambda: names)
    assert found["fmr"] == found["fcr"] == 1
