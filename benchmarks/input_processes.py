"""How fast rows are read and tokenised, by numbers of input processes, beside what an H100 takes.

    python -m benchmarks.input_processes [--gin_file FILE] [--processes 0 1 2] [--batches 100]

Reads the training batches of a job (default: MovieLens-100k, scoring, prepared as for
`benchmarks.movielens`). What an accelerator takes is reckoned: a `base` model whose training step
does 40% of 989 TFLOP/s (H100 SXM, bfloat16) on rows of the job's lengths. Then a step is slept, as
long as the tokens of a batch take at nine tenths of the measured speed, and `InputFeed` is asked as
the loop asks it: what the step waits for its batch. Rows go to
`benchmarks/results/input_processes.json`.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from benchmarks.command_line import errors_told
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax import configuration
from m6rec_jax.model import ModelConfig
from m6rec_jax.model.flops import train_flops
from m6rec_jax.pipeline.batches import BatchIterator
from m6rec_jax.training.input_feed import InputFeed

JOB = "gin_configs/jobs/movielens_ctr.gin"
MODEL = "gin_configs/models/base.gin"
H100_FLOPS = 0.4 * 989e12
# Batches before the clock starts: tf.data fills its buffers first.
_FIRST = 10


def rows_per_second_wanted() -> float:
    """Rows that the configured model trains on in a second on an H100."""
    lengths = configuration.macro("TASK_FEATURE_LENGTHS")
    flops = train_flops(ModelConfig(), 1, lengths["inputs"], lengths["targets"], trainable="all")
    return H100_FLOPS / flops.total


def measure(processes: int, number: int) -> dict[str, float]:
    """Rows and tokens a second, and the share of a slept step that waits."""
    rows = configuration.macro("BATCH_SIZE")
    batches = BatchIterator(
        configuration.macro("MIXTURE_OR_TASK_NAME"),
        configuration.macro("TASK_FEATURE_LENGTHS"),
        rows,
        num_shards=8,
        num_input_processes=processes,
    )
    try:
        for _ in range(_FIRST):
            next(batches)
        begun, tokens = time.perf_counter(), 0
        for _ in range(number):
            batch = next(batches)
            tokens += sum(
                int((batch[f"{side}_block_ids"] > 0).sum()) for side in ("encoder", "decoder")
            )
        seconds = time.perf_counter() - begun
        step = seconds / number / 0.9
        waits = list[float]()
        with InputFeed(batches, lambda batch: batch) as feed:
            for _ in range(number):
                asked = time.perf_counter()
                feed.next()
                waits.append(time.perf_counter() - asked)
                time.sleep(step)
    finally:
        batches.close()
    return {
        "rows_per_second": number * rows / seconds,
        "tokens_per_second": tokens / seconds,
        "input_wait_percent": 100 * float(np.sum(waits[_FIRST:])) / (step * (number - _FIRST)),
    }


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The speed of reading, by input processes.")
    parser.add_argument("--gin_file", default=JOB, help="of a job: task, lengths, batch size")
    parser.add_argument("--processes", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=100, help="that are timed")
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    configuration.parse_config([MODEL, options.gin_file], [])
    wanted = rows_per_second_wanted()
    for processes in options.processes:
        metrics = measure(processes, options.batches)
        own = metrics["rows_per_second"] / max(processes, 1)
        metrics["processes_for_an_h100"] = wanted / own
        name = f"{processes} input processes" if processes else "the training process"
        found += metric_rows(
            metrics,
            model=name,
            dataset=configuration.macro("MIXTURE_OR_TASK_NAME"),
            split="reading",
            seed=None,
            gin_file=options.gin_file,
        )
        print(name, {key: round(value, 2) for key, value in metrics.items()}, flush=True)
    add_rows(results_path("input_processes"), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
