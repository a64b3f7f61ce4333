"""Words and phrases of texts: boundaries, case, scripts."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.metrics import phrases


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \t\n", []),
        ("...", []),
        ("Film-Noir, don't!", ["Film", "Noir", ",", "don", "t", "!"]),
        ("Samuel L. Jackson", ["Samuel", "L", "Jackson"]),
        ("1,000 (films)", ["1", ",", "000", "(", "films", ")"]),
        ("Amélie’s", ["Amélie", "s"]),
        # A decomposed letter is the composed one.
        (unicodedata.normalize("NFD", "Amélie"), ["Amélie"]),
        ("ｆｕｌｌ", ["full"]),
        # Vowel signs are part of the word although they are no letters.
        ("हिंदी फ़िल्म", [unicodedata.normalize("NFKC", word) for word in ("हिंदी", "फ़िल्म")]),
        # The variation selector and the joiner of emoji are nothing of their own.
        ("a ❤️ b", ["a", "❤", "b"]),
        ("👩‍🚀", ["👩", "🚀"]),
        ("soft\u00adhyphen", ["softhyphen"]),
    ],
)
def test_pieces(text, expected):
    assert phrases.pieces(text) == expected


@given(st.text())
@settings(max_examples=150)
def test_any_text_can_be_split_and_folds_piece_by_piece(text):
    surface = phrases.pieces(text)
    assert all(surface)
    assert all(not piece.isspace() for piece in surface)
    key = phrases.phrase_key(text)
    assert key == () or len(key) == len(surface)


def slow_all_in(text, names):
    """Every phrase at every place, by comparing slices."""
    folded = [piece.casefold() for piece in phrases.pieces(text)]
    found = set()
    for name in names:
        key = tuple(piece.casefold() for piece in phrases.pieces(name))
        places = range(len(folded) - len(key) + 1)
        if any(tuple(folded[i : i + len(key)]) == key for i in places):
            found.add(key)
    return found


@given(
    st.lists(st.sampled_from(["a", "B", "c", ",", "a b"]), max_size=8),
    st.lists(st.sampled_from(["A", "b", "a b", "b c", "a, b", "b a b c"]), max_size=4),
)
@settings(max_examples=150)
def test_all_phrases_are_found_wherever_they_stand(words, names):
    text = " ".join(words)
    assert phrases.PhraseFinder(map(phrases.phrase_key, names)).all_in(text) == slow_all_in(
        text, names
    )
