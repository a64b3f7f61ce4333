"""Optimizers and schedules against optax's own and against formulas."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m6rec_jax.training.optimizers import NOT_DECAYED, adafactor, adamw, name_mask, warmup_schedule


def tree() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "params": {
            "mlp": {"kernel": jax.random.normal(keys[0], (8, 4)), "wi_bias": jnp.ones(4)},
            "norm": {"scale": jnp.ones(4)},
        },
        "prompts": {"bank": {"soft_prompts": jax.random.normal(keys[1], (1, 2, 4))}},
    }


def steps(optimizer: Any, count: int = 3, scale: float = 1.0) -> Any:
    params = tree()
    state = optimizer.init(params)
    for step in range(count):
        grads = jax.tree.map(lambda x, s=step: scale * jnp.cos(x + s), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(one: Any, two: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


def test_adamw_is_optax_adamw() -> None:
    params = tree()
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.01, weight_decay=0.1, mask=name_mask(params, NOT_DECAYED)),
    )
    assert_close(steps(adamw(0.01, weight_decay=0.1)), steps(reference))


def test_adafactor_is_optax_adafactor() -> None:
    reference = optax.adafactor(0.01, min_dim_size_to_factor=2)
    assert_close(steps(adafactor(0.01, min_dim_size_to_factor=2)), steps(reference))


def test_absolute_leaves_do_not_move_by_their_size() -> None:
    """A bias of any size takes the same steps; others take those they take without it."""

    def moved(size: float, **settings: Any) -> dict[str, np.ndarray]:
        params = {"params": {"kernel": jnp.full(4, 2.0), "relative_bias": jnp.full(4, size)}}
        optimizer = adafactor(0.1, **settings)
        grads = jax.tree.map(jnp.ones_like, params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return {name: np.asarray(leaf) for name, leaf in updates["params"].items()}

    small, large = (moved(size, absolute=("relative_bias",)) for size in (0.5, 80.0))
    np.testing.assert_allclose(small["relative_bias"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(small["relative_bias"], large["relative_bias"])
    relative = moved(80.0)
    np.testing.assert_allclose(relative["relative_bias"], -8.0, rtol=1e-6)
    np.testing.assert_array_equal(large["kernel"], relative["kernel"])


def test_the_backbone_may_have_a_rate_of_its_own() -> None:
    still = steps(adamw(0.01, rate_factors={"^params/": 0.0}))
    assert_close(still["params"], tree()["params"])
    assert_close(still["prompts"], steps(adamw(0.01))["prompts"])
    # Weight decay is part of the step, so a rate of 0 switches it off as well.
    still = steps(adamw(0.01, rate_factors={"^params/": 0.0}, weight_decay=0.5))
    assert_close(still["params"], tree()["params"])


def test_decay_spares_norms_factors_and_biases() -> None:
    params = tree()
    params["prompts"]["decoder"] = {"ia3_key": {"factors": jnp.ones((1, 1, 4))}}
    assert name_mask(params, NOT_DECAYED) == {
        "params": {"mlp": {"kernel": True, "wi_bias": False}, "norm": {"scale": False}},
        "prompts": {"bank": {"soft_prompts": True}, "decoder": {"ia3_key": {"factors": False}}},
    }
    # A pattern alone is one, not a sequence of letters.
    assert name_mask(params, "mlp/kernel") == name_mask(params, ("mlp/kernel",))


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 60: 1.0, 110: 1.0}),
        ("linear", {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.5, 110: 0.0, 200: 0.0}),
        ("cosine", {5: 0.5, 10: 1.0, 60: 0.5, 35: 0.5 * (1 + math.cos(math.pi / 4))}),
    ],
)
def test_schedules(decay: str, expected: dict[int, float]) -> None:
    schedule = warmup_schedule(1.0, warmup_steps=10, decay=decay, total_steps=110)
    for step, rate in expected.items():
        assert float(schedule(jnp.asarray(step))) == pytest.approx(rate, abs=1e-6), step


@pytest.mark.parametrize("make", [adamw, adafactor])
def test_factors_slow_leaves_down_by_name(make: Any) -> None:
    params = tree()
    grads = jax.tree.map(jnp.cos, params)
    plain, slowed = make(0.01), make(0.01, rate_factors={"mlp/": 0.5, "bias$": 0.1})
    whole, _ = plain.update(grads, plain.init(params), params)
    parts, _ = slowed.update(grads, slowed.init(params), params)
    mlp, whole_mlp = parts["params"]["mlp"], whole["params"]["mlp"]
    np.testing.assert_allclose(mlp["kernel"], 0.5 * whole_mlp["kernel"], rtol=1e-6)
    np.testing.assert_allclose(mlp["wi_bias"], 0.05 * whole_mlp["wi_bias"], rtol=1e-6)
    assert_close(parts["prompts"], whole["prompts"])
    assert_close(parts["params"]["norm"], whole["params"]["norm"])
