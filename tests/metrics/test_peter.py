"""PETER's likeness: by hand, and against its own arithmetic where sets make no difference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import generation, peter

TEXT = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8).map(" ".join)


def test_rare_words_are_unknown_and_long_texts_are_cut():
    known = peter.frequent_words(["the pool was nice", "the pool", "the view"], 2)
    assert known == {"the", "pool"}
    assert peter.peter_form("the  big pool", known) == "the <unk> pool"
    assert peter.peter_form(" ".join("the" for _ in range(20)), known).split() == ["the"] * 15


def test_rouge_takes_sets():
    # Sets {a, b} and {a, c}: one of two, both ways.
    assert peter.peter_rouge(["a a b"], ["a c"]) == pytest.approx(50.0)
    # Bigrams {a a, a b} and {a b}: precision 1/2, recall 1, F 2/3.
    assert peter.peter_rouge(["a a b"], ["a b"], 2) == pytest.approx(100 * 2 / 3)
    assert peter.peter_rouge(["a", "b"], ["a", "c"]) == pytest.approx(50.0)
    assert peter.peter_rouge(["a"], ["b"], 2) == 0.0


@settings(deadline=None)  # the first call imports rouge-score
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_without_repeated_words_it_is_plain_rouge(pairs):
    unique = [[" ".join(dict.fromkeys(text.split())) for text in pair] for pair in pairs]
    texts, references = map(list, zip(*unique, strict=True))
    plain = generation.rouge(texts, references, (1, 2))
    for order in (1, 2):
        found = peter.peter_rouge(texts, references, order)
        assert found == pytest.approx(plain[order].f, abs=1e-9)


def test_two_unknown_words_match_and_punctuation_belongs_to_words():
    known = {"the", "pool", "good"}
    found = peter.peter_metrics(["the lobby", "good."], ["the terrace", "good"], known)
    # "good." is not "good", and unknown.
    assert found["rouge_1"] == pytest.approx(50.0)
    assert found["bleu_1"] == pytest.approx(100 * 2 / 3)
    assert found["usr"] == 1.0
    assert peter.peter_metrics(["a b", "c d"], ["a", "c"], known)["usr"] == 0.5


def test_numbers_of_texts_must_agree():
    with pytest.raises(DataError, match="references"):
        peter.peter_rouge(["a"], ["a", "b"])
