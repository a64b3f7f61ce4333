"""Pieces that are written alike, or whose blocks follow each other, start alike."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m6rec_jax.text.token_vectors import composed_vectors, count_neighbours, neighbour_vectors

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


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_text_has_a_vector(pieces: list[str]) -> None:
    vectors = composed_vectors(pieces, 16)
    assert vectors.shape == (len(pieces), 16)
    assert np.isfinite(vectors).all()
    assert (np.square(vectors).sum(axis=1) > 0).all()


NUM_PIECES = 7


def counted_one_by_one(tokens, blocks, segments, max_distance):
    counts = np.zeros((NUM_PIECES, NUM_PIECES))
    for row in range(len(tokens)):
        for i in range(tokens.shape[1]):
            for j in range(tokens.shape[1]):
                a, b = tokens[row, i], tokens[row, j]
                distance = abs(int(blocks[row, i]) - int(blocks[row, j]))
                if segments is not None and segments[row, i] != segments[row, j]:
                    continue
                text = 0 < a < NUM_PIECES and 0 < b < NUM_PIECES
                if text and blocks[row, i] and blocks[row, j] and 0 < distance <= max_distance:
                    counts[a, b] += 1 / distance
    return counts


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Documents of blocks, packed or alone, some ids control tokens, padding at the end."""
    number, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    packed = draw(st.booleans())
    tokens, blocks, segments = (np.zeros((number, length), np.int32) for _ in range(3))
    for row in range(number):
        block, segment = 1, 1
        for place in range(draw(st.integers(0, length))):
            tokens[row, place] = draw(st.integers(1, NUM_PIECES + 2))
            block += draw(st.integers(0, 3)) if place else 0
            if packed and draw(st.booleans()):
                block, segment = 1, segment + 1
            blocks[row, place], segments[row, place] = block, segment
    return tokens, blocks, segments if packed else None


ROW = np.array([[1, NUM_PIECES, 1]], np.int32)


@given(rows(), st.integers(1, 4))
@example((ROW, np.array([[1, 1, 2]], np.int32), None), 1)  # only a control token stands between
def test_counts(given_rows: tuple[np.ndarray, np.ndarray, np.ndarray | None], most: int) -> None:
    found = count_neighbours([given_rows, given_rows], NUM_PIECES, most).toarray()
    # Sums of a few dozen fractions in float64, in another order.
    np.testing.assert_allclose(found, 2 * counted_one_by_one(*given_rows, most), atol=1e-9)


def test_what_is_watched_together_is_near() -> None:
    """Two circles of six pieces each, and a piece that stands everywhere and tells nothing."""
    rng = np.random.default_rng(0)
    circles = np.where(rng.random((400, 1)) < 0.5, 0, 6)
    tokens = (1 + circles + rng.integers(6, size=(400, 10))).astype(np.int32)
    tokens[:, ::5] = 13
    blocks = np.tile(np.arange(1, 11, dtype=np.int32), (400, 1))
    counts = count_neighbours([(tokens, blocks, None)], 20, 3)
    vectors = neighbour_vectors(counts, 8, seed=1)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[14:], 0)
    assert np.mean(np.square(vectors[1:14])) == pytest.approx(1.0, rel=1e-5)
    near = vectors @ vectors.T
    inside = [near[a, b] for a in range(1, 7) for b in range(1, 7) if a != b]
    across = [near[a, b] for a in range(1, 7) for b in range(7, 13)]
    assert min(inside) > 10 * max(np.abs(across))
    # Every direction is used: a mean over dimensions of the axes' shares is not one axis.
    assert np.abs(vectors).mean(axis=0).min() > 0
    np.testing.assert_array_equal(vectors, neighbour_vectors(counts, 8, seed=1))
