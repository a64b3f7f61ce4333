"""Top-p and temperature against numpy; keys that make each row's draw its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from m6rec_jax.engine.decoding.sampling import SamplingOptions, drawn, keep_likeliest
from m6rec_jax.engine.decoding.text_decoding import Decoding, TextOptions

VOCAB = 12
# Unlike by at least 1/16, so that their probabilities are unlike in float32, too.
LOGITS = arrays.arrays(np.int32, (3, VOCAB), elements=st.integers(-160, 160), unique=True).map(
    lambda sixteenths: (sixteenths / 16).astype(np.float32)
)


def seeds(number: int) -> Any:
    return jnp.arange(number, dtype=jnp.uint32)


def kept_by_sorting(logits: np.ndarray, top_p: float) -> list[int]:
    """Places kept, by sorting one row of unlike logits in float64."""
    order = np.argsort(-logits, kind="stable")
    wide = logits[order].astype(np.float64)
    probabilities = np.exp(wide - wide.max())
    before = np.cumsum(probabilities) - probabilities
    if top_p < 1:
        order = order[before < top_p * probabilities.sum()]
    return sorted(order.tolist())


@settings(max_examples=200)
@given(LOGITS, st.sampled_from([0.05, 0.3, 0.5, 0.83, 0.97, 1.0]))
def test_kept_tokens_equal_sorting(logits: np.ndarray, top_p: float) -> None:
    kept = np.asarray(jax.jit(keep_likeliest)(logits, np.float32(top_p)))
    for row in range(3):
        found = np.flatnonzero(np.isfinite(kept[row])).tolist()
        expected = kept_by_sorting(logits[row], top_p)
        if found != expected:  # only where a mass is p but for float32's rounding
            probabilities = np.exp(logits[row].astype(np.float64) - logits[row].max())
            probabilities /= probabilities.sum()
            odd = sorted(set(found) ^ set(expected))
            assert probabilities[odd].sum() < 1e-5, (found, expected)
        np.testing.assert_array_equal(kept[row][found], logits[row][found])


def test_ties_with_the_last_one_are_kept() -> None:
    log_probs = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    assert np.isfinite(keep_likeliest(log_probs, 0.5)).tolist() == [[True] * 3 + [False] * 2]
    assert np.isfinite(keep_likeliest(log_probs, 0.39)).tolist() == [[True] + [False] * 4]


def test_probabilities_that_hardly_differ_are_told_apart() -> None:
    log_probs = jnp.arange(100, dtype=jnp.float32)[None] * 1e-5
    assert np.isfinite(keep_likeliest(log_probs, 0.305)).sum() == 31


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SamplingOptions(), [0.5, 0.3, 0.15, 0.05]),
        (SamplingOptions(temperature=0.5), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        (SamplingOptions(top_p=0.9), np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (SamplingOptions(temperature=0.0), [1, 0, 0, 0]),
    ],
)
def test_frequencies(options: SamplingOptions, expected: Any) -> None:
    number = 20_000
    log_probs = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (number, 1))
    tokens = jax.jit(drawn)(log_probs, 3, seeds(number), options)
    frequencies = np.bincount(tokens, minlength=4) / number
    np.testing.assert_allclose(frequencies, expected, atol=0.015)
    assert not frequencies[np.asarray(expected) == 0].any()


def test_every_row_may_have_options_of_its_own() -> None:
    log_probs = jnp.tile(jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1])), (3000, 1))
    options = SamplingOptions(
        jnp.tile(jnp.array([0.0, 1.0, 1.0]), 1000),
        jnp.tile(jnp.array([1.0, 0.6, 0.8]), 1000),
    )
    tokens = np.asarray(drawn(log_probs, jnp.int32(0), seeds(3000), options))
    assert [set(tokens[row::3].tolist()) for row in range(3)] == [{0}, {0, 1}, {0, 1, 2}]


def test_a_draw_depends_on_its_row_and_position_alone() -> None:
    rng = np.random.default_rng(0)
    log_probs = jnp.asarray(rng.normal(size=(6, 500)), jnp.float32)

    def draw(log_probs: Any, position: int, seeds: Any) -> Any:
        return np.asarray(drawn(log_probs, jnp.int32(position), seeds, SamplingOptions(top_p=0.99)))

    tokens = draw(log_probs, 4, seeds(6))
    others = jnp.asarray(rng.normal(size=(6, 500)), jnp.float32).at[2].set(log_probs[2])
    assert draw(others, 4, seeds(6))[2] == tokens[2]
    assert draw(log_probs[2:3], 4, seeds(6)[2:3])[0] == tokens[2]
    assert (draw(log_probs, 5, seeds(6)) != tokens).any()
    assert len(set(draw(jnp.tile(log_probs[:1], (6, 1)), 4, seeds(6)).tolist())) > 1


@pytest.mark.parametrize(
    ("decoding", "wanted"),
    [
        (Decoding(), TextOptions(temperature=1.0, top_p=1e-50)),
        (Decoding(1.0, top_p=1e-50), TextOptions()),
        (Decoding(1e-38), TextOptions()),
        (Decoding(), TextOptions(temperature=1e-38)),
    ],
)
def test_the_least_options_take_the_likeliest(decoding: Decoding, wanted: TextOptions) -> None:
    """Though float32 would keep no token, or divide all by nearly nothing."""
    sampling = decoding.request([], "", "", (0,), wanted=wanted).sampling
    log_probs = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    assert drawn(log_probs, jnp.int32(0), seeds(1), SamplingOptions(*sampling)).tolist() == [1]
