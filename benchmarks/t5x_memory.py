"""What a frozen backbone costs under t5x: memory of the compiled train step, in one run.

    python -m benchmarks.t5x_memory [--model mini] [--batch 32] [--microbatches 4]

Needs t5x (docs/t5x.md). Option-adapter tuning of a model file's size, 128 source and 64 target
tokens. Nothing is trained: steps are compiled for one device, and XLA says what they need. Rows go
to `benchmarks/results/t5x_memory.json`.

Compared are the built-in trainer; t5x with the bridge, to which the backbone is a constant; t5x as
it does by itself, which asks for gradients of the backbone and throws them away; and that with
t5x's weight metrics, which read them. Each with the whole batch and in microbatches, where t5x adds
up gradients in arrays as large as all parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from t5x import adafactor, partitioning, utils
from t5x.trainer import WeightMetricsComputer

from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax import configuration
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.pipeline.features import MODEL_FEATURES, feature_lengths
from m6rec_jax.pipeline.registration import register_recommendation_tasks
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.t5x_bridge import variables
from m6rec_jax.t5x_bridge.model import M6RecModel
from m6rec_jax.t5x_bridge.trainer import M6RecTrainer
from m6rec_jax.training.optimizers import adafactor as own_adafactor
from m6rec_jax.training.train_state import abstract_state
from m6rec_jax.training.train_step import CompiledStep, make_train_step

LENGTHS = {"inputs": 128, "targets": 64}
MEBIBYTE = 2**20
Shapes = dict[str, jax.ShapeDtypeStruct]


def main() -> None:
    """Adds the figures to the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="of gin_configs/models")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--microbatches", type=int, default=4)
    args = parser.parse_args()
    configuration.parse_config(
        [
            f"gin_configs/models/{args.model}.gin",
            "gin_configs/tuning/option_adapter.gin",
            "gin_configs/objectives/scoring.gin",
        ],
        ["NUM_OPTIONS=2"],
    )
    model: M6Rec = configuration.macro("MODEL")
    (name,) = register_recommendation_tasks("memory", "nowhere")[3:4]
    for parts in (1, args.microbatches):
        steps = {
            "m6rec train": built_in_step(model, args.batch, parts),
            "t5x, the bridge": t5x_step(model, name, args.batch, parts, constant=True),
            "t5x, differentiated": t5x_step(model, name, args.batch, parts, constant=False),
            "t5x, differentiated, weight metrics": t5x_step(
                model, name, args.batch, parts, constant=False, weight_metrics=True
            ),
        }
        for trainer, step in steps.items():
            memory = step.memory_analysis()
            found = {
                "state_mib": memory.output_size_in_bytes / MEBIBYTE,
                "temporary_mib": memory.temp_size_in_bytes / MEBIBYTE,
            }
            print(f"{trainer}, {parts} microbatches: {found}", flush=True)
            rows = metric_rows(
                found,
                model=trainer,
                dataset="memory",
                split="whole" if parts == 1 else "microbatches",
                seed=None,
                config=f"{args.model}, batch {args.batch}, {parts} microbatches",
            )
            add_rows(results_path("t5x_memory"), rows)


def batch_shapes(rows: int, parts: int = 1) -> Shapes:
    """Features of a batch; in parts they have one more axis."""
    lengths = feature_lengths(LENGTHS)
    lead = (rows,) if parts == 1 else (parts, rows // parts)
    return {
        name: jax.ShapeDtypeStruct((*lead, lengths[name]), feature.dtype)
        for name, feature in MODEL_FEATURES.items()
    }


def built_in_step(model: M6Rec, rows: int, parts: int) -> Any:
    """The compiled step of `m6rec train`."""
    optimizer = own_adafactor(1e-2)
    mesh, rules = make_mesh(devices=jax.devices()[:1]), data_parallel()
    state = abstract_state(model, optimizer, mesh, rules, trainable="prompts")
    step = make_train_step(model, optimizer, trainable="prompts", seed=0, accumulation_steps=parts)
    features: Any = batch_shapes(rows, parts)
    return CompiledStep(step, state, features, mesh=mesh, rules=rules, updates_state=True).compiled


def t5x_step(
    model: M6Rec,
    task: str,
    rows: int,
    parts: int,
    *,
    constant: bool,
    weight_metrics: bool = False,
) -> Any:
    """t5x's compiled step; `constant` False: gradients of the frozen backbone are taken, too."""
    optimizer = adafactor.Adafactor(
        decay_rate=0.8, logical_factor_rules=variables.logical_factor_rules()
    )
    bridge = M6RecModel(model, task, optimizer, trainable="prompts")
    bridge._frozen = constant  # the optimizer is made already, and stays as it is
    partitioner = partitioning.PjitPartitioner(
        num_partitions=1, logical_axis_rules=variables.logical_axis_rules()
    )
    features: Mapping[str, Any] = batch_shapes(rows)
    initializer = utils.TrainStateInitializer(
        optimizer_def=bridge.optimizer_def,
        init_fn=bridge.get_initial_variables,
        input_shapes={name: x.shape for name, x in features.items()},
        partitioner=partitioner,
    )
    trainer = M6RecTrainer(
        model=bridge,
        train_state=None,
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=np.zeros(2, np.uint32),
        learning_rate_fn=lambda step: 1e-2,
        num_microbatches=None if parts == 1 else parts,
        weight_metrics_computer=WeightMetricsComputer() if weight_metrics else None,
    )
    try:
        return partitioner.compile(
            trainer._partitioned_train_step, initializer.global_train_state_shape, features
        )
    finally:
        trainer.close()


if __name__ == "__main__":
    main()
