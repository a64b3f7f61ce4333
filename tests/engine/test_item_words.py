"""Similarity of items by their words, against TF-IDF computed word by word."""

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.engine.index.item_words import ItemWords

TEXTS = [
    "The Great Dictator (1940), comedy",
    "the great escape, 1963, war",
    "Modern Times: comedy; comedy!",
    "नमस्ते दुनिया",
    "",
    "Amélie, comedy",
    "NAÏVE naïve — великий диктатор",
]


def words_of(text: str) -> list[str]:
    """Runs of letters, marks and numbers."""
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
    return "".join(kept).split()


def by_hand(texts: Sequence[str], last: Mapping[int, float]) -> list[float]:
    """Weighted mean cosine with items of these weights, in plain Python."""
    counted = [Counter(words_of(text)) for text in texts]
    frequency = Counter(word for words in counted for word in words)
    vectors = []
    for words in counted:
        vector = {
            word: (1 + math.log(times)) * math.log(len(texts) / frequency[word])
            for word, times in words.items()
        }
        length = math.sqrt(sum(value**2 for value in vector.values())) or 1.0
        vectors.append({word: value / length for word, value in vector.items()})
    whole = sum(last.values()) or 1.0
    return [
        sum(
            sum(vectors[item].get(word, 0.0) * value for word, value in vector.items()) * weight
            for item, weight in last.items()
        )
        / whole
        for vector in vectors
    ]


def by_age(past: Sequence[int]) -> Counter[int]:
    """Weights of the last five, the k-th last 1/k."""
    weights = Counter[int]()
    for place, item in enumerate(past[::-1][:5], 1):
        weights[item] += 1 / place
    return weights


@pytest.mark.parametrize("past", [[], [0], [4], [0, 2], [1, 1, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_similarities_are_those_of_tf_idf_by_hand(past: list[int]) -> None:
    (found,) = ItemWords(TEXTS).near([past]).toarray()
    np.testing.assert_allclose(found, by_hand(TEXTS, by_age(past)), atol=1e-6)
    # Of very many the last fifty count.
    (found,) = ItemWords(TEXTS).alike([[3] * bool(past) + past * 50]).toarray()
    many = Counter((past * 50)[-50:])
    np.testing.assert_allclose(found, by_hand(TEXTS, many), atol=1e-6)


@given(
    st.lists(st.text("ab cd.", max_size=12), min_size=1, max_size=8).flatmap(
        lambda texts: st.tuples(
            st.just(texts),
            st.lists(st.lists(st.integers(0, len(texts) - 1), max_size=7), min_size=1, max_size=3),
        )
    )
)
def test_any_texts(asked: tuple[list[str], list[list[int]]]) -> None:
    texts, recent = asked
    found = ItemWords(texts).near(recent).toarray()
    expected = [by_hand(texts, by_age(own)) for own in recent]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_only_items_that_share_a_word_have_an_entry() -> None:
    found = ItemWords([*TEXTS, "comedy"]).near([[0]])
    # "The Great Dictator" shares words with "the great escape", and the comedies.
    assert sorted(found.indices[found.data > 0].tolist()) == [0, 1, 2, 5, 7]
