"""Run by test_meshes.py with 8 virtual CPU devices: losses of 20 equal steps on several meshes."""

from __future__ import annotations

import json

import gin
import jax
import numpy as np

from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.sharding import (
    data_parallel,
    fully_sharded,
    fully_sharded_2d,
    make_mesh,
    place_batch,
)
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adafactor
from m6rec_jax.training.pruning import gradual_pruning
from m6rec_jax.training.train_state import TrainSetup
from m6rec_jax.training.train_step import compile_step, make_train_step
from tests.training.toy_run import toy_batch, toy_config

STEPS = 20


def losses(mesh: jax.sharding.Mesh, rules: tuple) -> list[float]:
    # Pruned to a half, too: thresholds are of whole matrices, however they are split.
    optimizer = gradual_pruning(adafactor(1e-2, min_dim_size_to_factor=8), STEPS, 0, 0.5)
    setup = TrainSetup(M6Rec(toy_config()), optimizer, mesh, rules)
    state, step = initial_state(setup), make_train_step(setup)
    rng = np.random.default_rng(0)
    compiled, by_step = None, []
    for _ in range(STEPS):
        features = place_batch(toy_batch(rng, 16), mesh)
        compiled = compiled or compile_step(setup, step, state, features)
        state, metrics = compiled(state, features)
        by_step.append(float(metrics["loss"]))
    embedding = np.asarray(state.params["token_embedder"]["embedding"])
    assert abs(np.mean(embedding == 0) - 0.5) < 0.02
    return by_step


def main() -> None:
    assert jax.device_count() == 8
    gin.bind_parameter("total_loss.classification_weight", 0.5)
    by_mesh = {
        "one": losses(make_mesh(devices=jax.devices()[:1]), data_parallel()),
        "fsdp 8": losses(make_mesh(fsdp=8), fully_sharded()),
        "tensor 2 x data 4": losses(make_mesh(tensor=2), fully_sharded_2d()),
    }
    print(json.dumps(by_mesh))


if __name__ == "__main__":
    main()
