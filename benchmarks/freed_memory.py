"""Training steps with and without `m6rec_jax.host_memory`: time, page faults, memory, in turns.

    python -m benchmarks.freed_memory [--model_file FILE] [--batch 64] [--turns 3]

The step is that of `m6rec train` on random tokens, 256 + 64 a row, with AdamW. Each turn has a
process of its own, since the allocator is set before there are threads; with and without take
turns, so that what else the machine does meets both. Times are the medians of the turns' fastest
steps, page faults and peak memory those of the last turn. All losses have to be the same to the
bit. Rows go to `benchmarks/results/freed_memory.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax.errors import M6RecError
from m6rec_jax.host_memory import keep_freed_memory

MODEL_FILE = "gin_configs/examples/foundation_model.gin"
KEPT, RETURNED = "freed memory is kept", "as glibc comes"
STEPS_PER_TURN = 6
Turn = dict[str, float]


def take_turn(name: str, model_file: str, rows: int) -> Turn:
    """Times steps in this process, after one that compiles and one that warms up.

    Returns:
      `seconds` of the fastest step, `faults` (pages mapped anew) of a step, peak `mib`, and the
      last step's `loss`.

    Raises:
      M6RecError: memory cannot be kept on this machine.
    """
    if name == KEPT and not keep_freed_memory():
        raise M6RecError(
            "nothing to measure: no glibc, an accelerator, or MALLOC_... in the environment"
        )
    # Imports jax.
    from benchmarks.training_throughput import built_in_step, random_batch
    from m6rec_jax import configuration
    from m6rec_jax.model import ModelConfig

    configuration.parse_config([model_file], [])
    config = ModelConfig(dropout_rate=0.1)
    run = built_in_step(config, random_batch(rows, config.vocab_size))
    for _ in range(2):
        loss = run()["loss"]
    seconds, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS_PER_TURN):
        started = time.perf_counter()
        loss = run()["loss"]
        seconds.append(time.perf_counter() - started)
    used = resource.getrusage(resource.RUSAGE_SELF)
    faults = (used.ru_minflt - before) / STEPS_PER_TURN
    return {
        "seconds": min(seconds),
        "faults": faults,
        "mib": used.ru_maxrss / 1024,
        "loss": float(loss),
    }


def turn_of(name: str, options: argparse.Namespace) -> Turn:
    """What `take_turn` says in a process of its own.

    Raises:
      M6RecError: it failed; what it printed says why.
    """
    command = [sys.executable, "-m", "benchmarks.freed_memory", f"--turn-of={name}"]
    command += [f"--model_file={options.model_file}", f"--batch={options.batch}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    if done.returncode:
        raise M6RecError(f"'{name}' ended with status {done.returncode}")
    found: Turn = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_file", default=MODEL_FILE, help="gin file with a model's sizes")
    parser.add_argument("--batch", type=int, default=64, help="rows")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turn-of", choices=(KEPT, RETURNED), help="only takes one turn")
    options = parser.parse_args(arguments)
    turns: dict[str, list[Turn]] = {RETURNED: [], KEPT: []}
    try:
        if options.turn_of:
            print(json.dumps(take_turn(options.turn_of, options.model_file, options.batch)))
            return 0
        for _ in tqdm(range(options.turns), unit="turn"):
            for name, found in turns.items():
                found.append(turn_of(name, options))
        if len(losses := {turn["loss"] for found in turns.values() for turn in found}) > 1:
            raise M6RecError(f"the allocator changes what is computed: losses are {losses}")
    except M6RecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = {name: statistics.median(turn["seconds"] for turn in turns[name]) for name in turns}
    model = Path(options.model_file).stem
    for name, found in turns.items():
        figures = {
            "step_milliseconds": 1000 * seconds[name],
            "page_faults": found[-1]["faults"],
            "peak_memory_mib": found[-1]["mib"],
            "times_faster": seconds[RETURNED] / seconds[name],
        }
        print(f"{name}: {figures}", flush=True)
        rows = metric_rows(
            figures,
            model=name,
            dataset="throughput",
            split="training",
            seed=None,
            config=f"{model}, {options.batch} rows of 256 + 64 tokens, AdamW",
        )
        add_rows(results_path("freed_memory"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
