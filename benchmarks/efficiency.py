"""What makes a training step cheap on this machine: packing, unrolling, float types, tuning less.

    python -m benchmarks.efficiency [--gin_file FILE] [--turns 10]

Times the jitted training step of a gin file on real rows of its task, in three studies:

  * packing: a group's candidates in one decoder row that share one encoding, against the same
    candidates with a row each;
  * layers: the file's own model against scanned layers and float32 operands;
  * tuning: the file's own parameters against all parameters (`--full_gin_file`) on the same rows,
    with the memory that a step needs: state, batch and what XLA keeps between operations at once.

All programs run in turns, so that what else the machine does meets all of them; a figure
is the fastest turn. Rows go to `benchmarks/results/efficiency.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax import configuration
from m6rec_jax.errors import M6RecError
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.sharding import data_parallel, make_mesh, place_batch
from m6rec_jax.text import rows
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adafactor
from m6rec_jax.training.train_state import abstract_state
from m6rec_jax.training.train_step import CompiledStep, make_train_step

GIN_FILE = "gin_configs/examples/movielens_ctr_option_adapter.gin"
FULL_GIN_FILE = "gin_configs/examples/movielens_ctr_full.gin"
Batch = Mapping[str, np.ndarray]
Name = TypeVar("Name")


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


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A compiled training step.

    Attributes:
      run: takes a step and waits for it.
      memory: bytes of state, batch, results and temporary values, at their peak.
    """

    run: Callable[[], None]
    memory: int


def compiled_step(
    config: ModelConfig, batch: Batch, trainable: str, frozen_dtype: str | None = None
) -> Step:
    """Training of `trainable` parameters on `batch`; see `train` for `frozen_dtype`."""
    model, optimizer = M6Rec(config), adafactor()
    mesh, rules = make_mesh(), data_parallel()
    abstract = abstract_state(
        model, optimizer, mesh, rules, trainable=trainable, frozen_dtype=frozen_dtype
    )
    state = initial_state(model, optimizer, abstract, mesh, rules, trainable=trainable, seed=0)
    placed = place_batch(batch, mesh)
    function = make_train_step(model, optimizer, trainable=trainable, seed=0)
    step = CompiledStep(function, state, placed, mesh=mesh, rules=rules, updates_state=True)
    held = [state]

    def run() -> None:
        held[0], scalars = step(held[0], placed)
        jax.block_until_ready(scalars["loss"])

    sizes = step.compiled.memory_analysis()
    assert sizes is not None, "every backend that is benchmarked here analyses memory"
    memory = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    memory += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return Step(run, memory)


def fastest(programs: Mapping[Name, Callable[[], None]], turns: int) -> dict[Name, float]:
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


LAYERS: Mapping[str, Mapping[str, Any]] = {
    "unrolled, bfloat16 operands": {"scan_unroll": 0, "matmul_dtype": "bfloat16"},
    "unrolled, float32": {"scan_unroll": 0, "matmul_dtype": None},
    "scanned, bfloat16 operands": {"scan_unroll": 1, "matmul_dtype": "bfloat16"},
    "scanned, float32": {"scan_unroll": 1, "matmul_dtype": None},
}
FULL = "all parameters"
TUNED = "option-adapter"
TUNED_BFLOAT16 = "option-adapter, backbone held in bfloat16"


def studies(
    config: ModelConfig, full: ModelConfig, batch: Batch, turns: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by study and program.

    Args:
      config: of a model whose prompts train.
      full: of one that trains as a whole.
      batch: real rows.
      turns: of every program.
    """
    candidates = int((batch["decoder_labels"] >= 0).sum())
    per_row = int(batch["decoder_block_ids"].max())
    single = one_candidate_per_row(batch, batch["decoder_block_ids"].shape[1] // per_row)
    packed, alone = f"{per_row} candidates in a row", "one candidate in a row"
    programs = {
        "packing": {
            packed: compiled_step(config, batch, "prompts"),
            alone: compiled_step(config, single, "prompts"),
        },
        "layers": {
            name: compiled_step(dataclasses.replace(config, **changes), batch, "prompts")
            for name, changes in LAYERS.items()
        },
        "tuning": {
            TUNED: compiled_step(config, batch, "prompts"),
            TUNED_BFLOAT16: compiled_step(config, batch, "prompts", "bfloat16"),
            FULL: compiled_step(full, batch, "all"),
        },
    }
    runs = {(study, name): step.run for study, of in programs.items() for name, step in of.items()}
    seconds = fastest(runs, turns)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for study, steps in programs.items():
        slowest = max(seconds[study, name] for name in steps)
        for name, step in steps.items():
            value = seconds[study, name]
            found.setdefault(study, {})[name] = {
                "step_milliseconds": 1000 * value,
                "candidates_per_second": candidates / value,
                "times_faster": slowest / value,
                "peak_memory_mib": step.memory / 2**20,
            }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Time the training step of a gin file.")
    parser.add_argument("--gin_file", default=GIN_FILE)
    parser.add_argument("--full_gin_file", default=FULL_GIN_FILE)
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args(arguments)
    try:
        configuration.parse_config([options.full_gin_file], ["MODEL_DIR='unused'"])
        full = ModelConfig()
        configuration.parse_config([options.gin_file], ["MODEL_DIR='unused'"])
        found = studies(ModelConfig(), full, _batch(), options.turns)
    except M6RecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measured: list[dict[str, Any]] = []
    for study, programs in found.items():
        for name, figures in programs.items():
            gin_file = options.full_gin_file if name == FULL else options.gin_file
            measured += metric_rows(
                figures,
                model=name,
                dataset="movielens-100k",
                split=study,
                seed=None,
                gin_file=Path(gin_file).as_posix(),
            )
            told = ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
            print(f"{study}, {name}: {told}")
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
