"""Language metrics."""

import math

import numpy as np
import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.metrics.language import perplexity_from_sums


def test_perplexity_of_uniform_guessing_is_the_number_of_choices():
    assert perplexity_from_sums(12 * math.log(50), 12) == pytest.approx(50)


def test_sums_over_batches_equal_one_batch():
    logp = np.random.default_rng(0).normal(-2, 1, 100)
    parts = -logp[:30].sum() - logp[30:].sum()
    assert perplexity_from_sums(parts, 100) == pytest.approx(np.exp(-logp.mean()))
    assert perplexity_from_sums(1e6, 1) == math.inf


def test_nothing_to_count_is_named():
    with pytest.raises(DataError, match="no target token has a positive weight"):
        perplexity_from_sums(1.0, 0)
    with pytest.raises(DataError, match="is NaN"):
        perplexity_from_sums(math.nan, 1)
