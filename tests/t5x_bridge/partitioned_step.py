"""Prints how t5x's partitioner splits the bridge's training step; run by test_partitioning.py.

partitioned_step.py cpu PROCESSES INDEX PORT   # 8 virtual devices in all, 2 of them per model
partitioned_step.py v5e:4x4                    # a slice that need not exist (libtpu)
"""

from __future__ import annotations

import json
import sys
from typing import Any

import gin
import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from t5x import adafactor, partitioning, utils

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.pipeline.registration import register_recommendation_tasks
from m6rec_jax.t5x_bridge import variables
from m6rec_jax.t5x_bridge.model import M6RecModel
from m6rec_jax.t5x_bridge.trainer import M6RecTrainer
from tests.training.toy_run import toy_batch, toy_config

ROWS = 16


def mesh_of(topology: str) -> Mesh:
    if topology == "cpu":
        # t5x's own mesh of CPUs has all devices of a process share one model.
        return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    first_host = [device for device in devices if device.process_index == 0]
    return partitioning.get_mesh(
        (2, 1, 1, 1), input_devices=devices, input_local_devices=first_host
    )


def report(mesh: Mesh) -> dict[str, Any]:
    """Axes of the mesh along each tensor, by name, as XLA was given them and gives them back."""
    (task, *_) = [
        name for name in register_recommendation_tasks("bridged", "nowhere") if name.endswith("ctr")
    ]
    config = toy_config(vocab_size=512, dropout_rate=0.0)
    optimizer = adafactor.Adafactor(
        decay_rate=0.8, logical_factor_rules=variables.logical_factor_rules()
    )
    model = M6RecModel(M6Rec(config), task, optimizer, trainable="prompts")
    partitioner = partitioning.PjitPartitioner(
        num_partitions=1, logical_axis_rules=variables.logical_axis_rules()
    )
    partitioner.mesh = mesh
    features = toy_batch(np.random.default_rng(3), ROWS)
    initializer = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: x.shape for name, x in features.items()},
        partitioner=partitioner,
    )
    state = initializer.global_train_state_shape
    trainer = M6RecTrainer(
        model=model,
        train_state=state,
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=lambda step: 1e-2,
        num_microbatches=None,
    )
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in features.items()}
    compiled = trainer._partitioned_train_step.lower(state, shapes).compile()
    trainer.close()
    (state_in, batch_in), _ = compiled.input_shardings
    state_out, _ = compiled.output_shardings
    return {
        "mesh": dict(mesh.shape),
        "params": {name: spec(x) for name, x in flatten(dict(state_in.params)).items()},
        "after": {name: spec(x) for name, x in flatten(dict(state_out.params)).items()},
        "states": sorted(flatten(dict(state_in.param_states))),
        "batch": {name: spec(x) for name, x in batch_in.items()},
        "sums": "all-reduce" in compiled.as_text(),
    }


def spec(sharding: Any) -> list[Any] | None:
    """None: the step does not read it."""
    return None if sharding is None else list(sharding.spec)


if __name__ == "__main__":
    topology, *processes = sys.argv[1:]
    gin.parse_config("total_loss.classification_weight = 1.0")
    if processes and int(processes[0]) > 1:
        jax.distributed.initialize(
            f"localhost:{processes[2]}", int(processes[0]), int(processes[1])
        )
    print(json.dumps(report(mesh_of(topology))))
