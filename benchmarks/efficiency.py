"""What makes a training step fast on this machine: packing candidates, unrolling, float types.

    python -m benchmarks.efficiency [--gin_file FILE] [--turns 10]

Times the jitted training step of a gin file on real rows of its task, in two studies:

  * packing: a group's candidates in one decoder row that share one encoding, against the same
    candidates with a row each;
  * layers: the file's own model against scanned layers and float32 operands.

All programs of a study run in turns, so that what else the machine does meets all of them; a figure
is the fastest turn. Rows go to `benchmarks/results/efficiency.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax import configuration
from m6rec_jax.errors import M6RecError
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.sharding import axis_rules, data_parallel, make_mesh, place_batch
from m6rec_jax.text import rows
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adafactor
from m6rec_jax.training.train_state import abstract_state
from m6rec_jax.training.train_step import make_train_step

GIN_FILE = "gin_configs/examples/movielens_ctr_option_adapter.gin"
Batch = Mapping[str, np.ndarray]


def one_candidate_per_row(batch: Batch, length: int) -> dict[str, np.ndarray]:
    """The candidates of a packed batch, each with a row and a copy of its history of its own.

    Args:
      batch: `[rows, ...]` features.
      length: decoder tokens of the new rows; longer candidates are cut.

    Returns:
      `[candidates, ...]` features.
    """
    blocks = batch["decoder_block_ids"]
    found: dict[str, list[np.ndarray]] = {name: [] for name in batch}
    for row in range(len(blocks)):
        for block in range(1, int(blocks[row].max()) + 1):
            at = np.flatnonzero(blocks[row] == block)[-length:]
            for name, values in batch.items():
                if name.startswith("decoder"):
                    padded = np.full(length, rows.FEATURES[name].padding, values.dtype)
                    padded[: len(at)] = 1 if name == "decoder_block_ids" else values[row, at]
                    found[name].append(padded)
                else:
                    found[name].append(values[row])
    return {name: np.stack(values) for name, values in found.items()}


def compiled_step(config: ModelConfig, batch: Batch, trainable: str) -> Callable[[], None]:
    """A function that takes one training step on `batch` and waits for it."""
    model, optimizer = M6Rec(config), adafactor()
    mesh, rules = make_mesh(), data_parallel()
    abstract = abstract_state(model, optimizer, mesh, rules, trainable=trainable)
    state = initial_state(model, optimizer, abstract, mesh, rules, trainable=trainable, seed=0)
    placed = place_batch(batch, mesh)
    step = make_train_step(model, optimizer, trainable=trainable, seed=0)
    with jax.set_mesh(mesh), axis_rules(rules):
        jitted = jax.jit(step, donate_argnums=0).lower(state, placed).compile()
    held = [state]

    def run() -> None:
        held[0], scalars = jitted(held[0], placed)
        jax.block_until_ready(scalars["loss"])

    return run


def fastest(programs: Mapping[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Seconds of each program's fastest run, all taking turns."""
    for run in programs.values():
        run()
    seconds = dict.fromkeys(programs, float("inf"))
    for _ in range(turns):
        for name, run in programs.items():
            started = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def studies(batch: Batch, trainable: str, turns: int) -> dict[str, dict[str, float]]:
    """Figures of every program, by its name in the tables."""
    config = ModelConfig()
    candidates = int((batch["decoder_labels"] >= 0).sum())
    per_row = batch["decoder_block_ids"].max()
    single = one_candidate_per_row(batch, batch["decoder_block_ids"].shape[1] // int(per_row))
    layers: dict[str, dict[str, Any]] = {
        "unrolled, bfloat16 operands": {"scan_unroll": 0, "matmul_dtype": "bfloat16"},
        "unrolled, float32": {"scan_unroll": 0, "matmul_dtype": None},
        "scanned, bfloat16 operands": {"scan_unroll": 1, "matmul_dtype": "bfloat16"},
        "scanned, float32": {"scan_unroll": 1, "matmul_dtype": None},
    }
    programs = {
        name: compiled_step(dataclasses.replace(config, **changes), batch, trainable)
        for name, changes in layers.items()
    }
    packed, alone = f"{per_row} candidates in a row", "one candidate in a row"
    programs[packed] = compiled_step(config, batch, trainable)
    programs[alone] = compiled_step(config, single, trainable)
    seconds = fastest(programs, turns)
    slowest_layers = max(seconds[name] for name in layers)
    found: dict[str, dict[str, float]] = {}
    for name, value in seconds.items():
        against = seconds[alone] if name in (packed, alone) else slowest_layers
        found[name] = {
            "step_milliseconds": 1000 * value,
            "candidates_per_second": candidates / value,
            "times_faster": against / value,
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Time the training step of a gin file.")
    parser.add_argument("--gin_file", default=GIN_FILE)
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args(arguments)
    try:
        configuration.parse_config([options.gin_file], ["MODEL_DIR='unused'"])
        batch = _batch()
        trainable = str(configuration.macro("TRAINABLE"))
        found = studies(batch, trainable, options.turns)
    except M6RecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measured: list[dict[str, Any]] = []
    for name, figures in found.items():
        measured += metric_rows(
            figures,
            model=name,
            dataset="movielens-100k",
            split="packing" if "candidate" in name else "layers",
            seed=None,
            gin_file=Path(options.gin_file).as_posix(),
        )
        told = ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
        print(f"{name}: {told}")
    add_rows(results_path("efficiency"), measured)
    return 0


def _batch() -> Batch:
    from m6rec_jax.pipeline.batches import BatchIterator

    batches = BatchIterator(
        configuration.macro("MIXTURE_OR_TASK_NAME"),
        configuration.macro("TASK_FEATURE_LENGTHS"),
        configuration.macro("BATCH_SIZE"),
        process_index=0,
        process_count=1,
    )
    try:
        return next(batches)
    finally:
        batches.close()


if __name__ == "__main__":
    sys.exit(main())
