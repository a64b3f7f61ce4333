"""Pieces that are written alike start alike."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.text.piece_vectors import composed_vectors

WIDTH = 256
RATED = [f", rated {value / 20:.2f}" for value in range(20, 101)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_near_numbers_are_near() -> None:
    vectors = composed_vectors(RATED, WIDTH)
    steps = [cosine(vectors[40], vectors[40 + step]) for step in (1, 4, 8, 20)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 0.99
    # A star apart they share the word alone: half of what they are made of.
    assert steps[-1] < 0.8


def test_numbers_are_compared_within_their_clause() -> None:
    """72 is near 73 among percents, where the numbers go to 100, and as far as 3.65 from 3.70."""
    percents = [f", {number}% like it" for number in range(101)]
    vectors = composed_vectors([*RATED, *percents], WIDTH)
    assert cosine(vectors[81 + 72], vectors[81 + 73]) > 0.99
    assert cosine(vectors[81 + 10], vectors[81 + 90]) < 0.85
    # Another clause's number is a stranger, equal or not.
    assert abs(cosine(vectors[RATED.index(", rated 4.00")], vectors[81 + 4])) < 0.4


def test_signs_and_thousands() -> None:
    pieces = [f", taste {value:+.2f}" for value in (-0.5, -0.1, -0.05, 0.05, 0.5)]
    vectors = composed_vectors(pieces, WIDTH)
    assert cosine(vectors[2], vectors[3]) > cosine(vectors[2], vectors[4])
    assert cosine(vectors[1], vectors[2]) > cosine(vectors[0], vectors[4])
    views = composed_vectors(["1,000 views", "999 views", "10 views", "v1.2.3 views"], WIDTH)
    assert cosine(views[0], views[1]) > 0.99 > cosine(views[0], views[2])


def test_words_are_shared() -> None:
    pieces = [
        "\u2581Alien\u2581(1979)",
        "\u2581Alien\u2581Nation",
        "\u2581Fargo",
        "alien",
        "19",
        "\u2581",
    ]
    vectors = composed_vectors(pieces, WIDTH)
    assert cosine(vectors[0], vectors[1]) > 0.25
    assert abs(cosine(vectors[0], vectors[2])) < 0.2
    # A word keeps its vector whatever else the vocabulary holds; another seed gives another one.
    np.testing.assert_array_equal(composed_vectors(["\u2581Fargo"], WIDTH)[0], vectors[2])
    assert abs(cosine(composed_vectors(["\u2581Fargo"], WIDTH, seed=1)[0], vectors[2])) < 0.25
    mean_squares = np.square(vectors).mean(axis=1)
    assert ((mean_squares > 0.5) & (mean_squares < 2.0)).all()


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_text_has_a_vector(pieces: list[str]) -> None:
    vectors = composed_vectors(pieces, 16)
    assert vectors.shape == (len(pieces), 16)
    assert np.isfinite(vectors).all()
    assert (np.square(vectors).sum(axis=1) > 0).all()
