"""Training with rounded weights: the packed model's loss, and its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.programs.packed_file import quantized_variables
from m6rec_jax.model.m6rec import M6Rec, initial_features
from m6rec_jax.model.quantization import SCALE
from m6rec_jax.objectives import mean_loss, total_loss
from m6rec_jax.training.objective import with_rounded_weights
from tests.training.toy_run import toy_batch, toy_config, toy_train


def test_the_loss_is_that_of_packed_weights_and_gradients_pass() -> None:
    model, batch = M6Rec(toy_config(dropout_rate=0.0)), toy_batch(np.random.default_rng(0), 4)
    boxed = jax.jit(model.init)(jax.random.key(0), initial_features())
    variables = jax.tree.map(np.asarray, dict(nn.meta.unbox(boxed)))
    packed = quantized_variables(variables)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    # A backbone in bfloat16 is tuned for the rounding that is packed.
    found = jax.tree.map(np.array_equal, *map(quantized_variables, (halves, whole)))
    assert all(jax.tree.leaves(found))
    flat = flatten(packed)
    floats = nested(
        {
            name: flat[name].astype(np.float32) * flat.get(name + SCALE, np.float32(1))
            for name in flatten(variables)
        }
    )
    loss = with_rounded_weights(total_loss, 8)

    def at(of: Any, given: Any) -> tuple[jax.Array, Any]:
        return jax.jit(jax.value_and_grad(lambda own: mean_loss(of(model, own, batch)[0])))(given)

    value, found = at(loss, variables)
    expected_value = jax.jit(lambda own: mean_loss(total_loss(model, own, batch)[0]))(packed)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    _, expected = at(total_loss, floats)
    found, expected = flatten(found), flatten(expected)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
        if name.endswith("kernel"):
            assert np.abs(leaf).max() > 0


def test_a_validation_evaluates_the_rounded_weights(tmp_path: Path) -> None:
    seen: list[Any] = []

    def evaluate(model: M6Rec, variables: Any, step: int) -> dict[str, float]:
        seen.append(jax.tree.map(np.asarray, dict(variables)))
        return {"auc": 0.5}

    toy_train(tmp_path, 1, weight_bits=3, eval_period=1, evaluate=evaluate)
    kernels = [leaf for name, leaf in flatten(seen[0]["params"]).items() if name.endswith("kernel")]
    # Of 3 bits there are seven values for each output.
    assert all(len(np.unique(kernel.reshape(len(kernel), -1)[:, 0])) <= 7 for kernel in kernels)
