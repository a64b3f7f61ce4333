"""Rows that leave the decoder early: against a loop without a cache, one layer at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.model import Encoded, M6Rec, ModelConfig
from m6rec_jax.model.attention import mask_bias
from m6rec_jax.model.early_exit import TokenExits
from m6rec_jax.model.layer import Layer

Make = Callable[..., dict[str, Any]]
LENGTH, LAYERS, ROWS = 6, 5, 3
TASKS = np.zeros((ROWS, 1), np.int32)


@pytest.fixture(scope="module")
def deep(config: ModelConfig) -> ModelConfig:
    """The first decoder layer has no cross attention, and so is no exit."""
    prompts = dataclasses.replace(config.prompts, adapters_late_only=True)
    return config.replace(num_decoder_layers=LAYERS, decoder_late_start=1, prompts=prompts)


@pytest.fixture(scope="module")
def variables(deep: ModelConfig, make_variables: Make) -> dict[str, Any]:
    return make_variables(deep)


@pytest.fixture(scope="module")
def encoded(deep: ModelConfig, variables: Any, features: dict[str, np.ndarray]) -> Encoded:
    model = M6Rec(deep)
    found: Encoded = jax.jit(lambda *args: model.apply(*args, method=model.encode))(
        variables, features["encoder_input_tokens"], features["encoder_block_ids"], TASKS
    )
    return found


def tokens() -> np.ndarray:
    found = np.random.default_rng(1).integers(2, 32, (ROWS, LENGTH)).astype(np.int32)
    found[:, 0] = 0
    return found


def stepwise(
    config: ModelConfig, variables: Any, encoded: Encoded, exits: TokenExits | None
) -> np.ndarray:
    """States of all positions, `[rows, length, embed]`."""
    model = M6Rec(config)

    @jax.jit
    def run(variables: Any, encoded: Encoded, tokens: Any, exits: Any) -> Any:
        rows = encoded.mask.shape[0]
        task_ids = jnp.zeros((rows, 1), jnp.int32)
        cache = model.apply(
            variables, encoded, task_ids, max_length=LENGTH, method=model.start_decoding
        )

        def step(cache: Any, inputs: Any) -> Any:
            position, column = inputs
            hidden, cache = model.apply(
                variables, cache, column, position, task_ids, exits=exits, method=model.decode_step
            )
            return cache, hidden

        _, hidden = jax.lax.scan(step, cache, (jnp.arange(LENGTH), tokens.T))
        return jnp.moveaxis(hidden, 0, 1)

    return np.asarray(run(variables, encoded, tokens()[: encoded.mask.shape[0]], exits))


def exits_of(threshold: Any, depth: int = LAYERS, rows: int = ROWS) -> TokenExits:
    thresholds = jnp.broadcast_to(jnp.asarray(threshold, jnp.float32), (rows,))
    return TokenExits(thresholds, jnp.full((rows,), depth), jnp.zeros((rows,), bool))


def layer_by_layer(
    model: M6Rec, variables: Any, encoded: Encoded, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `stepwise` must give, and the exits that tokens took: no cache, whole prefixes."""
    config, rows = model.config, len(thresholds)
    layer = Layer(config, bidirectional=False)
    bound = model.bind(variables)
    length = tokens().shape[1]
    bias = bound.decoder.relative_bias(length, length)
    causal = mask_bias(np.tril(np.ones((length, length), bool)))[None, None]
    source_mask = mask_bias(encoded.mask)[:, None, None]
    ids = np.zeros(rows, np.int32)
    stack = {name: variables[name]["decoder"]["layers"] for name in ("params", "prompts")}
    # What enters each layer, and what comes out of the last one.
    states = np.zeros((LAYERS + 1, rows, length, config.embed_dim), np.float32)
    states[0] = bound.embed(tokens()[:rows], ids)
    taken = np.zeros((rows, length), int)

    def normed(x: np.ndarray) -> np.ndarray:
        return np.asarray(bound.decoder.finish(x, deterministic=True), np.float64)

    run = jax.jit(layer.apply, static_argnames="tuned")
    for place in range(length):
        left = np.zeros(rows, bool)
        for index in range(LAYERS):
            late = index >= config.first_cross_layer
            source = (encoded.hidden, source_mask) if late else ()
            own = jax.tree.map(lambda leaf, index=index: leaf[index], stack)
            out = np.asarray(run(own, states[index], causal, bias, ids, *source, tuned=late))
            before = states[index][:, place]
            after = np.where(left[:, None], before, out[:, place])
            states[index + 1][:, place] = after
            if late:
                taken[:, place] += ~left
                a, b = normed(before[:, None])[:, 0], normed(after[:, None])[:, 0]
                cosine = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
                left |= cosine >= thresholds
    return normed(states[LAYERS]), taken


def test_settled_tokens_leave_and_their_state_fills_the_other_layers(
    deep: ModelConfig, variables: Any, encoded: Encoded
) -> None:
    thresholds = np.array([0.9, 0.95, 2.0])
    expected, taken = layer_by_layer(M6Rec(deep), variables, encoded, thresholds)
    # Some leave at once, some later, and the last row never.
    assert len(set(taken[:2].ravel())) > 2
    assert (taken[2] == deep.num_exits).all()
    found = stepwise(deep, variables, encoded, exits_of(thresholds))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_a_row_does_not_depend_on_those_beside_it(
    deep: ModelConfig, variables: Any, encoded: Encoded
) -> None:
    together = stepwise(deep, variables, encoded, exits_of(0.9))
    first = jax.tree.map(lambda leaf: leaf[:1], encoded)
    alone = stepwise(deep, variables, first, exits_of(0.9, rows=1))
    slower = stepwise(deep, variables, encoded, exits_of(np.array([0.9, 2.0, 2.0])))
    for other in (alone, slower):
        np.testing.assert_allclose(together[:1], other[:1], rtol=1e-5, atol=1e-5)


def test_never_is_the_plain_step_to_the_bit(
    deep: ModelConfig, variables: Any, encoded: Encoded
) -> None:
    plain = stepwise(deep, variables, encoded, None)
    never = stepwise(deep, variables, encoded, exits_of(2.0))
    np.testing.assert_array_equal(never, plain)


def test_a_depth_is_the_model_cut_off_there(
    deep: ModelConfig, variables: Any, encoded: Encoded
) -> None:
    cut = {**variables}
    for name in ("params", "prompts"):
        layers = jax.tree.map(lambda leaf: leaf[:3], variables[name]["decoder"]["layers"])
        decoder = variables[name]["decoder"] | {"layers": layers}
        cut[name] = variables[name] | {"decoder": decoder}
    expected = stepwise(deep.replace(num_decoder_layers=3), cut, encoded, None)
    found = stepwise(deep, variables, encoded, exits_of(2.0, depth=2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
