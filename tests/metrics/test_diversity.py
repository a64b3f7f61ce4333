"""Distinct n-grams and novelty."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import diversity

TEXTS = ["a b a b", "a b c", "", "c"]

texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "A", "!", "🎬"]), max_size=5).map(" ".join),
    min_size=1,
    max_size=5,
)


def test_by_hand():
    # Bigrams: ab ba ab / ab bc: three distinct of five.
    assert diversity.corpus_distinct(TEXTS, 2) == pytest.approx(3 / 5)
    assert diversity.distinct_per_text(TEXTS, 2) == pytest.approx(3 / 4)
    # Trigrams: aba bab / abc.
    assert diversity.corpus_distinct(TEXTS, 3) == pytest.approx(3 / 3)
    assert diversity.distinct_per_text(TEXTS, 3) == pytest.approx(3 / 4)
    assert diversity.distinct_per_text(["a b c d"], 1) == 4.0  # no upper bound of 1


@given(texts, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_equal_loops_over_strings(values, n):
    grams = []
    for text in values:
        tokens = text.split(" ") if text else []
        i = 0
        while i + n <= len(tokens):
            grams.append(" ".join(tokens[i : i + n]))
            i += 1
    unique = [gram for i, gram in enumerate(grams) if gram not in grams[:i]]
    assert diversity.distinct_per_text(values, n) == pytest.approx(len(unique) / len(values))
    if grams:
        share = len(unique) / len(grams)
        assert diversity.corpus_distinct(values, n) == pytest.approx(share)
    else:
        with pytest.raises(DataError, match=f"none of the {len(values)} texts has {n} tokens"):
            diversity.corpus_distinct(values, n)


def test_tokens_may_be_others():
    assert diversity.corpus_distinct(["aab"], 1, list) == pytest.approx(2 / 3)


def test_novelty_ignores_case_punctuation_and_spaces():
    training = ["Liked it, a lot!", "Café"]
    generated = ["liked it a  lot", "liked it", "cafe\u0301.", "liked it a lot?"]
    assert diversity.novelty(generated, training) == pytest.approx(1 / 4)
    assert diversity.novelty(generated, []) == 1.0


def test_novelty_takes_a_stream_and_counts_repeats():
    assert diversity.novelty(["x", "x", "y"], iter(["X"])) == pytest.approx(1 / 3)


def test_texts_without_words_keep_their_signs():
    assert diversity.novelty(["!!!", "???", "👍", ""], ["!!!"]) == pytest.approx(3 / 4)
    assert diversity.novelty(["", " "], ["  "]) == 0.0


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), max_size=4))
@settings(max_examples=100, deadline=None)
def test_novelty_of_any_text(generated, training):
    value = diversity.novelty(generated, training)
    assert 0.0 <= value <= 1.0
    assert diversity.novelty(generated, training + generated) == 0.0


def test_refusals():
    with pytest.raises(DataError, match="there are no texts"):
        diversity.corpus_distinct([], 2)
    with pytest.raises(DataError, match="must be a list of texts, got one text"):
        diversity.distinct_per_text("a b", 2)
    with pytest.raises(DataError, match="position 1 is a NoneType"):
        diversity.novelty(["a", None], [])
    with pytest.raises(ValueError, match="at least 1"):
        diversity.corpus_distinct(["a"], 0)
