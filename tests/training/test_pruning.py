"""Gradual pruning against a loop in numpy; zeros in resumed runs and in tuned backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.pruning import gradual_pruning, keep_zeros
from tests.training.toy_run import toy_train

BEGIN, END, SPARSITY = 2, 11, 0.8
RATE = 0.3


def tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "params": {
            "encoder": {
                # Of layers of unlike size, which a threshold for both would prune unlike shares of.
                "layers": {"mlp": {"kernel": normal(2, 7, 5) * np.float32([[[1]], [[30]]])}},
                "relative_bias": {"embedding": normal(8, 2)},
                "norm": {"scale": normal(6)},
            },
            "token_embedder": {"embedding": normal(11, 6)},
        },
        "prompts": {"bank": {"soft_prompts": normal(1, 2, 4)}},
    }


def gradients(step: int) -> dict[str, Any]:
    return jax.tree.map(lambda x: np.cos(x * 7 + step).astype(np.float32), tree())


def test_weights_go_as_in_a_loop() -> None:
    """Momentum, too, is of the weights that are left: what has gone moves nothing."""
    optimizer = gradual_pruning(optax.sgd(RATE, momentum=0.9), END, BEGIN, SPARSITY)
    params = tree()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    found = []
    for step in range(1, 14):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
        found.append(flatten(params))

    pruned = ("params/encoder/layers/mlp/kernel", "params/token_embedder/embedding")
    for name, leaf in flatten(tree()).items():
        weight, momentum = leaf.astype(np.float64), np.zeros(leaf.shape)
        mask = np.ones(leaf.shape, bool)
        for step in range(1, 14):
            gradient = flatten(gradients(step))[name].astype(np.float64)
            momentum = 0.9 * momentum + gradient * mask
            weight = (weight - RATE * momentum) * mask
            if name in pruned and BEGIN <= step <= END:
                share = SPARSITY * (1 - (1 - (step - BEGIN) / (END - BEGIN)) ** 3)
                for i in range(len(leaf) if "layers" in name else 1):
                    part = (i,) if "layers" in name else ()
                    flat = np.sort(np.abs(weight[part]), axis=None)
                    count = int(np.rint(share * flat.size))
                    if count:
                        mask[part] &= np.abs(weight[part]) > flat[count - 1]
                weight = weight * mask
            np.testing.assert_allclose(found[step - 1][name], weight, atol=1e-4, err_msg=name)
            np.testing.assert_array_equal(found[step - 1][name] == 0, ~mask, err_msg=name)


def zeros_of(state: Any) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(leaf) == 0
        for name, leaf in flatten(state.params).items()
        if name.endswith("kernel") or "token_embedder" in name
    }


def test_resumed_is_unbroken_and_tuning_keeps_zeros(tmp_path: Path) -> None:
    def run(folder: str, steps: int, **changes: Any) -> Any:
        settings = {"optimizer": gradual_pruning(adamw(3e-3), end_step=7)} | changes
        return toy_train(tmp_path / folder, steps, **settings)[0]

    unbroken = run("unbroken", 8)
    run("resumed", 4)
    resumed = run("resumed", 8)
    for one, other in zip(
        jax.tree.leaves(unbroken.state), jax.tree.leaves(resumed.state), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    zeros = zeros_of(unbroken.state)
    assert {round(float(mask.mean()), 1) for mask in zeros.values()} == {0.8}

    start = {"initial_checkpoint_path": str(tmp_path / "unbroken")}
    tuned = run("tuned", 3, optimizer=keep_zeros(adamw(3e-3)), **start)
    for name, mask in zeros_of(tuned.state).items():
        np.testing.assert_array_equal(mask, zeros[name], err_msg=name)
    before, after = unbroken.state.params, tuned.state.params
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(changed)), "what is left trains"
