"""Passages keep every word of a text, in order and within their length."""

from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.text.passages import passages

WORDS = st.text(alphabet='aB.?!" \n\t(1)é', max_size=200)


@given(WORDS, st.integers(1, 7))
def test_nothing_is_lost_and_nothing_is_too_long(text, max_words):
    found = passages(text, max_words)
    assert " ".join(found).split() == text.split()
    assert all(1 <= len(passage.split()) <= max_words for passage in found)


def test_sentences_end_where_a_reader_says():
    text = 'It rains. "Come in!" he says. J. Smith paid 3.50 for it? Yes (he did). ok'
    assert passages(text, 7) == [
        'It rains. "Come in!" he says.',
        "J. Smith paid 3.50 for it?",
        "Yes (he did). ok",
    ]


def test_sentences_stay_whole_where_they_fit():
    assert passages("One two. Three four. Five.", 4) == ["One two. Three four.", "Five."]
    # A sentence that is too long is cut, and its end shares a passage with what follows.
    assert passages("a b c d e f. Next one.", 4) == ["a b c d", "e f. Next one."]
    assert passages(" \n", 4) == []
