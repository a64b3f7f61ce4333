"""The study of tuning: methods x tasks x seeds on one frozen foundation.

    python -m benchmarks.tuning --foundation runs/foundation_answers
        [--tasks movielens_ctr film_plots_genre] [--methods full option_adapter] [--seeds 0 1 2]

Every run starts from the same foundation (`python -m benchmarks.foundation --answers`), takes the
steps of `gin_configs/studies/tuning.gin` (those of texts three times as many) at the rate of its
method, and is tested with the best of its validations. Runs whose rows stand in
`benchmarks/results/tuning.json` are not made again; rows of another foundation are an error.

Beside the usual keys a row has `task` and `method` (see `TASKS`, and
gin_configs/tuning/METHOD.gin), `foundation` (fingerprint of the backbone), `trainable_share` of the
backbone's parameters, and `step`, whose parameters were tested.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.command_line import errors_told, with_bindings
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, read_results, results_path
from benchmarks.runs import SPLIT, Run, backbone_of, refuse_others, tune
from m6rec_jax.io.progress import progress_bar

RESULTS = "tuning"
BUDGET = "gin_configs/studies/tuning.gin"
ALL_TASKS = "mean over tasks"

# Data of each task, and figures that are kept; the first decides.
TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "movielens_ctr": ("movielens-100k", ("auc", "log_loss")),
    "book_crossing_conversion": ("book-crossing-small", ("auc", "log_loss")),
    "film_reviews_sentiment": ("film-reviews", ("auc", "accuracy")),
    "film_plots_genre": ("film-plots", ("auc", "accuracy")),
}
# Texts with classes: their steps are cheap, and what a class means is not yet learnt.
TEXTS = ("film_reviews_sentiment", "film_plots_genre")
OF_TEXTS = ("TRAIN_STEPS=480", "EVAL_PERIOD=20")
# What tables call a method, and what it is given beside gin_configs/tuning/METHOD.gin.
METHODS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "full": (
        "full fine-tuning",
        # Embeddings as fast as all else: where the words do not tell classes apart, they have to.
        ("LEARNING_RATE=1e-2", "DROPOUT_RATE=0.1", "RATE_FACTORS={'relative_bias/': 5.0}"),
    ),
    "prompt": ("prompt tuning", ("LEARNING_RATE=3e-2",)),
    "option": ("option tuning", ("LEARNING_RATE=3e-2",)),
    "option_adapter": ("option-adapter tuning", ("LEARNING_RATE=1e-1",)),
    "option_embedding": ("options and embedding update", ("LEARNING_RATE=1e-1",)),
    "lora": ("LoRA", ("LEARNING_RATE=1e-1",)),
}


def gin_file_of(method: str) -> str:
    """What a method's rows name."""
    return f"gin_configs/tuning/{method}.gin"


def settings_of(task: str, method: str) -> tuple[list[str], list[str]]:
    """Gin files and bindings of a run."""
    data = f"gin_configs/data/{TASKS[task][0]}/scoring.gin"
    files = ["gin_configs/models/foundation.gin", gin_file_of(method), data, BUDGET]
    return files, [*METHODS[method][1], *(OF_TEXTS if task in TEXTS else ())]


def rows_of(run: Run, task: str, method: str, seed: int, fingerprint: str) -> list[Row]:
    """Rows of one run."""
    rows = metric_rows(
        {name: run.figures[name] for name in TASKS[task][1]},
        model=METHODS[method][0],
        dataset=task,
        split=SPLIT,
        seed=seed,
        gin_file=gin_file_of(method),
        seconds=run.seconds,
    )
    settings = {"task": task, "method": method, "foundation": fingerprint}
    return [row | settings | run.settings() for row in rows]


def means_over_tasks(rows: Sequence[Row]) -> list[Row]:
    """A row per method and seed that ran on every task: the mean of its AUC over the tasks."""
    means: list[Row] = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows):
        of_run = [
            row
            for row in rows
            if (row["method"], row["seed"], row["metric"]) == (method, seed, "auc")
            and row["task"] in TASKS
        ]
        if len(of_run) < len(TASKS):
            continue
        (row,) = metric_rows(
            {"auc": statistics.fmean(row["value"] for row in of_run)},
            model=METHODS[method][0],
            dataset=ALL_TASKS,
            split=SPLIT,
            seed=seed,
            gin_file=gin_file_of(method),
        )
        share = statistics.fmean(row["trainable_share"] for row in of_run)
        settings = {"task": ALL_TASKS, "method": method, "trainable_share": share}
        means.append(row | settings | {"foundation": of_run[0]["foundation"]})
    return means


def study(
    foundation: Path,
    runs: Sequence[tuple[str, str, int]],
    output: Path,
    bindings: Sequence[str] = (),
) -> None:
    """Makes the runs that are missing and writes the result file after each.

    Args:
      foundation: MODEL_DIR of the foundation.
      runs: (task, method, seed).
      output: folder for runs while they train.
      bindings: gin bindings of every run.

    Raises:
      DataError: rows of another foundation are there.
      M6RecError: a run failed.
    """
    path, fingerprint = results_path(RESULTS), backbone_of(foundation)
    bar = progress_bar(runs, unit="run", desc="tuning")
    for task, method, seed in bar:
        rows = read_results(path)
        refuse_others(path, rows, foundation, fingerprint)
        if any((row["task"], row["method"], row["seed"]) == (task, method, seed) for row in rows):
            continue
        files, settings = settings_of(task, method)
        folder = output / f"{task}-{method}-{seed}"
        run = tune(files, foundation, seed, folder, [*settings, *bindings])
        bar.write(f"{task}, {method}, seed {seed}: AUC {run.figures['auc']:.4f}")
        new = rows_of(run, task, method, seed, fingerprint)
        add_rows(path, [*new, *means_over_tasks([*rows, *new])])


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Methods of tuning on one foundation.")
    parser.add_argument("--foundation", type=Path, default=ROOT / "runs" / "foundation_answers")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / RESULTS)
    options, bindings = with_bindings(parser, arguments)
    # Seeds first: after one of them every method can be compared on every task.
    runs = [
        (task, method, seed)
        for seed, task, method in itertools.product(options.seeds, options.tasks, options.methods)
    ]
    study(options.foundation.resolve(), runs, options.output.resolve(), bindings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
