"""Training steps on a CPU with huge pages and without: time, page faults, memory, in turns.

    python -m benchmarks.freed_memory [--model_file FILE] [--batch 64] [--turns 3]

XLA allocates a program's buffers whenever it runs. As glibc comes, large ones go back to the system
as soon as they are freed, and their pages are mapped and zeroed anew in the next step: 4 KiB at a
time, or 2 MiB where glibc asks for huge pages (`m6rec_jax.huge_pages`).

The step is that of `m6rec train` on random tokens, 256 + 64 a row, with AdamW. Each turn has a
process of its own; with and without take turns, so that what else the machine does meets both, on
all processors and on one, where XLA has one thread. Times are the medians of the turns' fastest
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
from collections.abc import Mapping
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax.errors import M6RecError
from m6rec_jax.huge_pages import HUGE_PAGES
from m6rec_jax.io.progress import progress_bar

MODEL_FILE = "gin_configs/examples/foundation_model.gin"
ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {"as glibc comes": {}, "huge pages": HUGE_PAGES}
PROCESSORS = ("one", "all")
WARM_UP, STEPS_PER_TURN = 4, 6
Turn = dict[str, float]


def page_faults() -> int:
    """Pages that were mapped to this process so far, without reading a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def take_turn(model_file: str, rows: int, processors: str) -> Turn:
    """Times steps in this process, after some in which it grows to the size that it needs.

    Returns:
      `seconds` of the fastest step, `faults` (pages mapped anew) of that with fewest, peak `mib`,
      and the last step's `loss`.
    """
    if processors == "one":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # jax counts processors when it is imported.
    from benchmarks.training_throughput import built_in_step, random_batch
    from m6rec_jax import configuration
    from m6rec_jax.model import ModelConfig

    configuration.parse_config([model_file], [])
    config = ModelConfig(dropout_rate=0.1)
    run = built_in_step(config, random_batch(rows, config.vocab_size))
    for _ in range(WARM_UP):
        loss = run()["loss"]
    seconds, faults = [], []
    for _ in range(STEPS_PER_TURN):
        before, started = page_faults(), time.perf_counter()
        loss = run()["loss"]
        seconds.append(time.perf_counter() - started)
        faults.append(page_faults() - before)
    return {
        "seconds": min(seconds),
        "faults": min(faults),
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": float(loss),
    }


def turn_of(name: str, processors: str, options: argparse.Namespace) -> Turn:
    """What `take_turn` says in a process of its own.

    Raises:
      M6RecError: it failed; what it printed says why.
    """
    command = [sys.executable, "-m", "benchmarks.freed_memory", f"--turn-on={processors}"]
    command += [f"--model_file={options.model_file}", f"--batch={options.batch}"]
    inherited = {key: value for key, value in os.environ.items() if key not in HUGE_PAGES}
    environment = {**inherited, "JAX_PLATFORMS": "cpu", **ENVIRONMENTS[name]}
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    if done.returncode:
        raise M6RecError(f"'{name}' ended with status {done.returncode}")
    found: Turn = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(processors: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of each environment, of turns on one processor or on all.

    Raises:
      M6RecError: a turn failed, or losses differ.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in ENVIRONMENTS}
    for _ in progress_bar(range(options.turns), unit="turn", desc=f"processors: {processors}"):
        for name, found in turns.items():
            found.append(turn_of(name, processors, options))
    if len(losses := {turn["loss"] for found in turns.values() for turn in found}) > 1:
        raise M6RecError(f"the allocator changes what is computed: losses are {losses}")
    seconds = {name: statistics.median(turn["seconds"] for turn in turns[name]) for name in turns}
    plain, *_ = seconds.values()
    return {
        name: {
            "step_milliseconds": 1000 * seconds[name],
            "times_faster": plain / seconds[name],
            "page_faults": found[-1]["faults"],
            "peak_memory_mib": found[-1]["mib"],
        }
        for name, found in turns.items()
    }


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_file", default=MODEL_FILE, help="gin file with a model's sizes")
    parser.add_argument("--batch", type=int, default=64, help="rows")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turn-on", choices=PROCESSORS, help="only takes one turn, on these")
    options = parser.parse_args(arguments)
    if options.turn_on:
        print(json.dumps(take_turn(options.model_file, options.batch, options.turn_on)))
        return 0
    model = Path(options.model_file).stem
    for processors in PROCESSORS:
        for name, figures in measure(processors, options).items():
            print(f"{name}, processors: {processors}: {figures}", flush=True)
            rows = metric_rows(
                figures,
                model=name,
                dataset="throughput",
                split=processors,
                seed=None,
                config=f"{model}, {options.batch} rows of 256 + 64 tokens, AdamW",
            )
            add_rows(results_path("freed_memory"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
