"""Language metrics."""

import math

import numpy as np
import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import language


def test_perplexity_of_uniform_guessing_is_the_number_of_choices():
    logp = np.full((3, 4), -math.log(50))
    assert language.perplexity(logp) == pytest.approx(50)


def test_weights_hide_padding_even_when_it_is_nan():
    logp = [[-1.0, -3.0, np.nan]]
    assert language.perplexity(logp, [[1, 1, 0]]) == pytest.approx(math.exp(2))
    assert language.perplexity(logp, [[3, 1, 0]]) == pytest.approx(math.exp(1.5))


def test_sums_over_batches_equal_one_batch():
    logp = np.random.default_rng(0).normal(-2, 1, 100)
    assert language.perplexity_from_sums(-logp[:30].sum() - logp[30:].sum(), 100) == pytest.approx(
        language.perplexity(logp)
    )
    assert language.perplexity_from_sums(1e6, 1) == math.inf


def test_token_accuracy():
    assert language.token_accuracy([1, 2, 3, 4], [1, 0, 3, 0], [1, 1, 1, 0]) == pytest.approx(2 / 3)


def test_nothing_to_count_is_named():
    with pytest.raises(DataError, match="no target token has a positive weight"):
        language.perplexity([-1.0], [0])
    with pytest.raises(DataError, match="no target token"):
        language.token_accuracy([1], [1], [0])
    with pytest.raises(DataError, match="is NaN"):
        language.perplexity([np.nan])
