"""Word dropout: what is left are words of the text, in order, as many as asked on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.text.word_dropout import drop_words


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


@given(st.text(), st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_what_is_left_is_of_the_text(text: str, share: float, seed: int) -> None:
    left = drop_words(text, share, np.random.default_rng(seed))
    assert is_subsequence(left.split(), text.split())
    assert bool(left.split()) == bool(text.split())


def test_no_share_keeps_all() -> None:
    assert drop_words("a  b\tc", 0.0, np.random.default_rng(0)) == "a b c"


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_share(share: float) -> None:
    words = [str(number) for number in range(10_000)]
    left = drop_words(" ".join(words), share, np.random.default_rng(0)).split()
    # Four standard deviations of a binomial draw.
    assert len(left) / len(words) == pytest.approx(1 - share, abs=4 * 0.5 / 100)
