"""One token at a time with a cache gives what the decoder gives for the whole target at once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from m6rec_jax.model import Encoded, M6Rec, ModelConfig
from m6rec_jax.model.decoding_layout import for_decoding_on_cpu

Make = Callable[..., dict[str, Any]]
Features = dict[str, np.ndarray]

LENGTH = 10
TASKS = np.array([[1], [0], [2]], np.int32)


@pytest.fixture(scope="module")
def many_tasks(every_method: ModelConfig) -> ModelConfig:
    """A bank of three tasks: every row has its own of all that tuning methods change."""
    return every_method.replace(prompts=dataclasses.replace(every_method.prompts, num_tasks=3))


def targets(rows: int) -> np.ndarray:
    # No [EOS], to which pooling adds: a text that is written has none before its end.
    tokens = np.random.default_rng(1).integers(2, 32, (rows, LENGTH)).astype(np.int32)
    tokens[:, 0] = 0
    return tokens


def encode(model: M6Rec, variables: Any, features: Features) -> Encoded:
    encoded: Encoded = jax.jit(lambda *args: model.apply(*args, method=model.encode))(
        variables, features["encoder_input_tokens"], features["encoder_block_ids"], TASKS
    )
    return encoded


def at_once(model: M6Rec, variables: Any, encoded: Encoded, tokens: np.ndarray) -> np.ndarray:
    """Teacher forcing, `[rows, target, embed]`, one row per source."""
    method = jax.jit(lambda *args: model.apply(*args, method=model.decode))
    return np.asarray(method(variables, encoded, tokens, np.ones_like(tokens), TASKS))


def stepwise(
    model: M6Rec, variables: Any, encoded: Encoded, tokens: np.ndarray, max_length: int = LENGTH
) -> np.ndarray:
    """The same by single steps in a compiled loop."""

    @jax.jit
    def run(variables: Any, encoded: Encoded, tokens: Any) -> Any:
        cache = model.apply(
            variables,
            encoded,
            TASKS,
            max_length=max_length,
            rows_per_source=tokens.shape[0] // encoded.mask.shape[0],
            method=M6Rec.start_decoding,
        )

        def step(cache: Any, inputs: Any) -> Any:
            position, column = inputs
            hidden, cache = model.apply(
                variables, cache, column, position, jnp.asarray(TASKS), method=M6Rec.decode_step
            )
            return cache, hidden

        _, hidden = jax.lax.scan(step, cache, (jnp.arange(tokens.shape[1]), tokens.T))
        return jnp.moveaxis(hidden, 0, 1)

    return np.asarray(run(variables, encoded, tokens))


@pytest.mark.parametrize(
    "changes",
    [
        {},  # L' = 2: the first decoder layer has no cross attention
        {"scan_unroll": 0},
        {"late_layers_start": 0},
        {"late_layers_start": 0, "scan_unroll": 0, "per_layer_relative_bias": True},
        {"per_layer_relative_bias": True},
        {"share_layers": True},
        {"share_layers": True, "late_layers_start": 0, "scan_unroll": 0},
        {"decoder_late_start": 2},  # no layer attends to the source at all
        {"matmul_dtype": "bfloat16", "scan_unroll": 0},
        {"dtype": "bfloat16"},
        {"mlp_activations": ("relu",), "logits_via_embedding": True},
    ],
    ids=str,
)
def test_steps_equal_teacher_forcing(
    many_tasks: ModelConfig, make_variables: Make, features: Features, changes: dict[str, Any]
) -> None:
    config = many_tasks.replace(**changes)
    model, variables = M6Rec(config), make_variables(config)
    encoded, tokens = encode(model, variables, features), targets(3)
    expected = at_once(model, variables, encoded, tokens)
    actual = stepwise(model, variables, encoded, tokens)
    tolerance = 0.15 if "dtype" in changes else 2e-2 if "matmul_dtype" in changes else 3e-5
    np.testing.assert_allclose(
        actual.astype(np.float32), expected.astype(np.float32), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("scan_unroll", [0, 1])
def test_rows_that_share_a_source(
    many_tasks: ModelConfig, make_variables: Make, features: Features, scan_unroll: int
) -> None:
    """Beams of one source, held once, equal copies of the source; the cache has room to spare."""
    config = many_tasks.replace(scan_unroll=scan_unroll)
    model, variables = M6Rec(config), make_variables(config)
    encoded, tokens = encode(model, variables, features), targets(6)
    shared = stepwise(model, variables, encoded, tokens, max_length=3 * LENGTH)
    for beam in range(2):
        expected = at_once(model, variables, encoded, tokens[beam::2])
        np.testing.assert_allclose(shared[beam::2], expected, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"matmul_dtype": "bfloat16", "late_layers_start": 0},
        {"logits_via_embedding": True, "per_layer_relative_bias": True},
        {"share_layers": True},
        {"decoder_late_start": 2},
    ],
    ids=str,
)
def test_variables_laid_out_for_a_cpu(
    many_tasks: ModelConfig, make_variables: Make, features: Features, changes: dict[str, Any]
) -> None:
    """Single rows, which take a product of their own, and rows that share a source too."""
    config = many_tasks.replace(**changes)
    model, variables = M6Rec(config), make_variables(config)
    laid_out = jax.jit(functools.partial(for_decoding_on_cpu, config))(nn.meta.unbox(variables))
    encoded, tokens = encode(model, variables, features), targets(6)
    expected = stepwise(model, variables, encoded, tokens)
    actual = stepwise(model, laid_out, encoded, tokens)
    tolerance = 2e-2 if "matmul_dtype" in changes else 1e-5
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    logits = jax.jit(lambda *args: model.apply(*args, method=model.token_logits))
    for rows in (1, 6):
        np.testing.assert_allclose(
            logits(laid_out, expected[:rows, 3]),
            logits(variables, expected[:rows, 3]),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize(
    ("changes", "separate"),
    [({}, True), ({"per_layer_relative_bias": True}, False), ({"late_layers_start": 0}, True)],
    ids=str,
)
def test_rows_at_positions_of_their_own(
    many_tasks: ModelConfig,
    make_variables: Make,
    features: Features,
    changes: dict[str, Any],
    separate: bool,
) -> None:
    """Rows that start when others are under way, in a cache that goes round twice.

    Only the order of sums over the columns differs: float32 within 3e-5.
    """
    config = many_tasks.replace(**changes)
    model, variables = M6Rec(config), make_variables(config)
    if separate:
        variables = for_decoding_on_cpu(config, nn.meta.unbox(variables))
    encoded, tokens = encode(model, variables, features), targets(3)
    expected = at_once(model, make_variables(config), encoded, tokens)
    starts = np.array([0, 4, LENGTH + 3])

    @jax.jit
    def run(variables: Any, encoded: Encoded, tokens: Any) -> Any:
        def step(cache: Any, time: Any) -> Any:
            position = (time - starts) % LENGTH  # a row begins anew when it is done
            column = time % LENGTH
            hidden, cache = model.apply(
                variables,
                cache,
                tokens[jnp.arange(3), position],
                position,
                jnp.asarray(TASKS),
                column,
                method=M6Rec.decode_step,
            )
            return cache, hidden

        start = {"max_length": LENGTH, "method": M6Rec.start_decoding}
        cache = model.apply(variables, encoded, TASKS, **start)
        return jax.lax.scan(step, cache, jnp.arange(3 * LENGTH))[1]

    hidden = np.asarray(run(variables, encoded, tokens))
    for row, start in enumerate(starts):
        own = hidden[start : start + LENGTH, row]
        np.testing.assert_allclose(own, expected[row], rtol=3e-5, atol=3e-5)


def test_cache_shapes_and_rows(
    many_tasks: ModelConfig, make_variables: Make, features: Features
) -> None:
    model, variables = M6Rec(many_tasks), make_variables(many_tasks)
    encoded = encode(model, variables, features)
    start = {"max_length": 7, "rows_per_source": 2, "method": M6Rec.start_decoding}
    cache: Any = model.apply(variables, encoded, TASKS, **start)
    assert cache.past.key.shape == cache.past.value.shape == (2, 6, 2, 7, 5)
    assert cache.source.key.shape == (1, 3, 2, 15, 5)  # one late layer; 4 soft prompts, 11 tokens
    assert (cache.length, cache.num_rows, cache.rows_per_source) == (7, 6, 2)
    tokens = targets(6)[:, 0] + np.arange(6, dtype=np.int32)
    stepped: Any = model.apply(variables, cache, tokens, 3, TASKS, method=M6Rec.decode_step)[1]
    written = np.abs(np.asarray(stepped.past.key)).sum((0, 1, 2, 4)) > 0
    assert written.tolist() == [False] * 3 + [True] + [False] * 3
    swapped = stepped.take_rows(jnp.array([1, 0, 3, 3, 4, 5]))
    np.testing.assert_array_equal(swapped.past.value[:, 0], stepped.past.value[:, 1])
    np.testing.assert_array_equal(swapped.past.value[:, 2], stepped.past.value[:, 3])
    np.testing.assert_array_equal(swapped.source.key, stepped.source.key)
