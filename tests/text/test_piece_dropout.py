"""Piece dropout: what is left are pieces of the text, in order, as many as asked on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.text.piece_dropout import PieceDropout


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(piece in rest for piece in part)


@given(st.lists(st.integers(0, 9)), st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_what_is_left_is_of_the_text(pieces: list[int], share: float, seed: int) -> None:
    ids = np.array(pieces, np.int32)
    left = PieceDropout(share, np.random.default_rng(seed))(ids)
    assert left.dtype == ids.dtype
    assert is_subsequence(left.tolist(), pieces)
    assert bool(len(left)) == bool(pieces)


def test_no_share_keeps_all() -> None:
    ids = np.arange(5)
    np.testing.assert_array_equal(PieceDropout(0.0, np.random.default_rng(0))(ids), ids)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_share(share: float) -> None:
    ids = np.arange(10_000)
    left = PieceDropout(share, np.random.default_rng(0))(ids)
    # Four standard deviations of a binomial draw.
    assert len(left) / len(ids) == pytest.approx(1 - share, abs=4 * 0.5 / 100)
