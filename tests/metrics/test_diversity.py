"""Distinct n-grams and novelty."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import diversity

texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "A", "!", "🎬"]), max_size=5).map(" ".join),
    min_size=1,
    max_size=5,
)


@given(texts, st.integers(1, 4))
@settings(max_examples=100)
def test_distinct_equals_loops_over_strings(values, n):
    grams = []
    for text in values:
        tokens = text.split(" ") if text else []
        grams += [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    unique = set(grams)
    assert diversity.distinct_per_text(values, n) == pytest.approx(len(unique) / len(values))
    if grams:
        share = len(unique) / len(grams)
        assert diversity.corpus_distinct(values, n) == pytest.approx(share)
    else:
        with pytest.raises(DataError, match=f"none of the {len(values)} texts has {n} tokens"):
            diversity.corpus_distinct(values, n)


def test_novelty_ignores_case_punctuation_and_spaces():
    training = ["Liked it, a lot!", "Café"]
    generated = ["liked it a  lot", "liked it", "cafe\u0301.", "liked it a lot?"]
    assert diversity.novelty(generated, iter(training)) == pytest.approx(1 / 4)
    assert diversity.novelty(["x", "x", "y"], ["X"]) == pytest.approx(1 / 3)
    # Texts without words keep their signs.
    assert diversity.novelty(["!!!", "???", "👍", ""], ["!!!"]) == pytest.approx(3 / 4)
