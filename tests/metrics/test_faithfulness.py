"""Attribute values found in explanations, and held against the items."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.metrics.faithfulness import AttributeDictionary, faithfulness

VALUES = {
    "director": ["Clint Eastwood", "Jean-Luc Godard"],
    "cast": ["Clint Eastwood", "Will"],
    "genres": ["Comedy", "Romantic Comedy", "Film-Noir", "War"],
    "countries": ["France", "New York", "York"],
}


def named(dictionary, text):
    return [dict(mention.values) for mention in dictionary.mentions(text)]


def test_longest_match_first_and_no_word_twice():
    dictionary = AttributeDictionary(VALUES)
    assert named(dictionary, "a romantic comedy from New York, a comedy") == [
        {"genres": "Romantic Comedy"},
        {"countries": "New York"},
        {"genres": "Comedy"},
    ]
    # From the left: "a b" takes the b that "b c d" would need.
    overlapping = AttributeDictionary({"x": ["a b", "b c d", "c"]})
    assert named(overlapping, "a b c d") == [{"x": "a b"}, {"x": "c"}]


def test_case_counts_where_it_is_asked_to():
    loose = AttributeDictionary(VALUES)
    strict = AttributeDictionary(VALUES, cased=("cast", "director"))
    assert named(loose, "you will like it") == [{"cast": "Will"}]
    assert named(strict, "you will like WILL, war and Will") == [
        {"genres": "War"},
        {"cast": "Will"},
    ]
    # Only the attribute that is cased is held to its capitals.
    both = AttributeDictionary({"cast": ["Chad"], "countries": ["Chad"]}, cased=("cast",))
    assert named(both, "Chad, chad") == [
        {"cast": "Chad", "countries": "Chad"},
        {"countries": "Chad"},
    ]
    # A long value that fails on its capitals leaves its words to shorter ones.
    nested = AttributeDictionary({"cast": ["War Horse"], "genres": ["War"]}, cased=("cast",))
    assert named(nested, "war horse") == [{"genres": "War"}]


def test_neutral_phrases_take_their_words():
    dictionary = AttributeDictionary(VALUES, neutral=["New York Stories", "Kings of Comedy", "War"])
    assert named(
        dictionary, "as you liked New York Stories and Kings of Comedy: war in New York"
    ) == [{"genres": "War"}, {"countries": "New York"}]


EXPLANATIONS = [
    "A comedy, a real comedy by Clint Eastwood",
    "A war film from France",
    "You will love it!",
    "",
    "Film noir by Jean-Luc Godard",
]
ITEMS = [
    {"genres": ["comedy"], "cast": ["Clint Eastwood"], "director": ["Nobody"]},
    {"genres": ["War", "Drama"], "countries": ["Italy"]},
    {"genres": ["Comedy"]},
    {"genres": ["Comedy"]},
    {"genres": ("Film Noir",), "director": (), "unknown": ["x"]},
]


def test_shares_by_hand():
    result = faithfulness(EXPLANATIONS, ITEMS, AttributeDictionary(VALUES, cased=("cast",)))
    # comedy (once), Eastwood / war, France / noir, Godard.
    expected = {"silent_share": 2 / 5, "true_share": 4 / 6, "all_true_share": 1 / 3}
    assert result == pytest.approx(expected)


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), max_size=4))
@settings(max_examples=100)
def test_any_text(texts, values):
    texts, values = [*texts, "a"], [*values, "a"]
    dictionary = AttributeDictionary({"x": values})
    own = faithfulness(texts, [{"x": values}] * len(texts), dictionary)
    none = faithfulness(texts, [{}] * len(texts), dictionary)
    assert own["silent_share"] == none["silent_share"] < 1
    assert own.get("true_share", 1.0) == own.get("all_true_share", 1.0) == 1.0
    assert none.get("true_share", 0.0) == none.get("all_true_share", 0.0) == 0.0
