"""What makes a training step cheap on this machine: packing, unrolling, float types, tuning less.

    python -m benchmarks.efficiency [--turns 10] [--studies packing layers]

Times the jitted training step of `GIN_FILE` on real rows of its task, in five studies:

  * packing: a group's candidates in one decoder row that share one encoding, against the same
    candidates with a row each;
  * layers: the file's own model against scanned layers and float32 operands;
  * tuning: the file's own parameters against all parameters (`FULL_GIN_FILE`) on the same rows,
    with the memory that a step needs: state, batch and what XLA keeps between operations at once;
  * tuning_small: the same at the size of gin_configs/models/small.gin, on the first eight rows;
  * logits: pretraining (`PRETRAIN_GIN_FILE`) with the logits of all positions at once, against
    those of a chunk at a time, where positions without a weight are left out.

All programs run in turns, so that what else the machine does meets all of them; a figure
is the fastest turn. Rows go to `benchmarks/results/efficiency.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from benchmarks.command_line import errors_told
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from m6rec_jax import configuration
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.sharding import data_parallel, make_mesh, place_batch
from m6rec_jax.text import rows
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adafactor
from m6rec_jax.training.train_state import abstract_state
from m6rec_jax.training.train_step import CompiledStep, make_train_step

GIN_FILE = "gin_configs/examples/movielens_ctr_option_adapter.gin"
FULL_GIN_FILE = "gin_configs/examples/movielens_ctr_full.gin"
PRETRAIN_GIN_FILE = "gin_configs/examples/movielens_pretrain.gin"
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
LOGITS = "logits"
STUDIES = ("packing", "layers", "tuning", "tuning_small", LOGITS)
SMALL, SMALL_ROWS = "gin_configs/models/small.gin", 8


@dataclasses.dataclass(frozen=True, slots=True)
class Models:
    """What a study compares at one size.

    Attributes:
      tuned: config of a model whose prompts train.
      full: of one that trains as a whole.
    """

    tuned: ModelConfig
    full: ModelConfig


def packing_programs(models: Models, batch: Batch) -> dict[str, Step]:
    """Candidates that share an encoding, and with a row each."""
    per_row = int(batch["decoder_block_ids"].max())
    single = one_candidate_per_row(batch, batch["decoder_block_ids"].shape[1] // per_row)
    return {
        f"{per_row} candidates in a row": compiled_step(models.tuned, batch, "prompts"),
        "one candidate in a row": compiled_step(models.tuned, single, "prompts"),
    }


def layer_programs(models: Models, batch: Batch) -> dict[str, Step]:
    """The model's layers unrolled and scanned, in both types of operands."""
    return {
        name: compiled_step(dataclasses.replace(models.tuned, **changes), batch, "prompts")
        for name, changes in LAYERS.items()
    }


def tuning_programs(models: Models, batch: Batch) -> dict[str, Step]:
    """Tuning of prompts and of all parameters."""
    return {
        TUNED: compiled_step(models.tuned, batch, "prompts"),
        TUNED_BFLOAT16: compiled_step(models.tuned, batch, "prompts", "bfloat16"),
        FULL: compiled_step(models.full, batch, "all"),
    }


_PROGRAMS = {
    "packing": packing_programs,
    "layers": layer_programs,
    "tuning": tuning_programs,
    "tuning_small": tuning_programs,
}


def measured(programs: Mapping[str, Step], batch: Batch, turns: int) -> dict[str, dict[str, float]]:
    """Figures by program, of programs that take turns on a batch."""
    candidates = int((batch["decoder_labels"] >= 0).sum())
    seconds = fastest({name: step.run for name, step in programs.items()}, turns)
    slowest = max(seconds.values())
    found = {
        name: {
            "step_milliseconds": 1000 * seconds[name],
            "times_faster": slowest / seconds[name],
            "peak_memory_mib": step.memory / 2**20,
        }
        for name, step in programs.items()
    }
    if candidates:
        for name, figures in found.items():
            figures["candidates_per_second"] = candidates / seconds[name]
    return found


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Time the training step.")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    options = parser.parse_args(arguments)
    for study in options.studies:
        if study == LOGITS:
            _record(study, measured_logits(options.turns), PRETRAIN_GIN_FILE)
            continue
        of_small = [SMALL] if study == "tuning_small" else []
        # The one parsed last says which rows are read.
        full = _config([FULL_GIN_FILE, *of_small])
        models = Models(_config([GIN_FILE, *of_small]), full)
        batch = _batch()
        if of_small:
            batch = {name: x[:SMALL_ROWS] for name, x in batch.items()}
        figures = measured(_PROGRAMS[study](models, batch), batch, options.turns)
        _record(study, figures, GIN_FILE)
    return 0


def measured_logits(turns: int) -> dict[str, dict[str, float]]:
    """Pretraining with the logits of all positions and of those with a weight."""
    chunked = _config([PRETRAIN_GIN_FILE])
    batch = _batch()
    programs = {"in chunks, of positions with a weight": compiled_step(chunked, batch, "all")}
    whole = _config([PRETRAIN_GIN_FILE], "language_modelling_loss.chunk_length=0")
    programs["of all positions at once"] = compiled_step(whole, batch, "all")
    return measured(programs, batch, turns)


def _config(files: list[str], *bindings: str) -> ModelConfig:
    configuration.parse_config(files, ["MODEL_DIR='unused'", *bindings])
    return ModelConfig()


def _record(study: str, programs: Mapping[str, Mapping[str, float]], gin_file: str) -> None:
    found: list[Row] = []
    for name, figures in programs.items():
        found += told_rows(
            {name: figures},
            dataset="movielens-100k",
            split=study,
            seed=None,
            gin_file=FULL_GIN_FILE if name == FULL else gin_file,
        )
    add_rows(results_path("efficiency"), found)


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
