"""The study of tuning: methods x tasks x seeds on one frozen foundation.

    python -m benchmarks.tuning --foundation runs/foundation_answers
        [--tasks movielens_ctr film_plots_genre] [--methods full option_adapter] [--seeds 0 1 2]
        [--gin.TRAIN_STEPS=480]

Every run starts from the same foundation (`python -m benchmarks.foundation --answers`), takes the
steps of `gin_configs/studies/tuning/budget.gin` (`budget_of_texts.gin`) with the rate of its
method's file there, and is tested with the best of its validations. Runs whose rows stand in
`benchmarks/results/tuning.json` are not made again, so a study that was interrupted goes on; rows
of another foundation, of other bindings, steps or settings are an error. Several of these commands
may run side by side, each on a processor of its own:

    taskset -c 0 python -m benchmarks.tuning --tasks movielens_ctr film_plots_genre &
    taskset -c 1 python -m benchmarks.tuning --tasks book_crossing_conversion film_reviews_sentiment

Every head starts from its job's words (OPTION_WORDS) but those of the two methods without words,
which are made only where `--methods` names them: they tell what options are worth by themselves.

A row is the figure of one run on the test part, with what else is known of the run:

    task, method      names of gin_configs/jobs/TASK.gin and gin_configs/studies/tuning/METHOD.gin
    trainable_share   parameters that train, as a share of the backbone
    curve             [[step, AUC on validation rows], ...]
    steps_to_90_percent   first validation with (AUC - 1/2) / (that of full fine-tuning at its end
                      - 1/2) >= 0.9, 0 where nothing need be tuned for it; null where none is
    foundation        fingerprint of the backbone
    bindings          the --gin.NAME=VALUE that the study was given
    train_steps       TRAIN_STEPS of the run
    configuration     fingerprint of all its settings
    step              whose parameters were tested
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.command_line import errors_told, with_bindings
from benchmarks.locks import locked
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, read_results, results_path
from benchmarks.tuned_run import (
    SPLIT,
    Curve,
    Run,
    backbone_of,
    conditions_of,
    refuse_others,
    tune,
)
from m6rec_jax.huge_pages import start_with_huge_pages
from m6rec_jax.io.progress import progress_bar

RESULTS = "tuning"
STUDY = "gin_configs/studies/tuning"
CHANCE = 0.5
OF_ONE_RUN = ("curve", "seconds", "step", "configuration", "train_steps")
ALL_TASKS = "mean over tasks"

# Figures that are kept of each task; the first decides.
TASKS: Mapping[str, tuple[str, ...]] = {
    "movielens_ctr": ("auc", "log_loss"),
    "book_crossing_conversion": ("auc", "log_loss"),
    "film_reviews_sentiment": ("auc", "accuracy"),
    "film_plots_genre": ("auc", "accuracy"),
}
# Where it is not budget.gin.
BUDGETS: Mapping[str, str] = {
    "film_reviews_sentiment": "budget_of_texts",
    "film_plots_genre": "budget_of_texts",
}
METHODS: Mapping[str, str] = {
    "full": "full fine-tuning",
    "linear_probe": "linear probe",
    "prompt": "prompt tuning",
    "option": "option tuning",
    "adapter": "adapters",
    "option_adapter": "option-adapter tuning",
    "option_embedding": "options and embedding update",
    "lora": "LoRA",
    "prompt_without_words": "prompt tuning, random head",
    "option_without_words": "option tuning, random options",
}
# Whose heads start random; made when they are asked for.
WITHOUT_WORDS = ("prompt_without_words", "option_without_words")


def steps_to_share(curve: Curve, full: float, share: float = 0.9) -> int | None:
    """First step at which `share` of what full fine-tuning gains over chance is reached.

    Args:
      curve: (step, AUC); 0 steps where the foundation reaches it untuned.
      full: AUC of full fine-tuning at its end, on the same validation rows.
      share: of its lead over chance.

    Returns:
      None where the curve never gets there, or full fine-tuning itself has no lead.
    """
    if full <= CHANCE:
        return None
    wanted = CHANCE + share * (full - CHANCE)
    return next((step for step, value in curve if value >= wanted), None)


def files_of(task: str, method: str) -> list[str]:
    """Gin files of a run."""
    budget = BUDGETS.get(task, "budget")
    return [f"{STUDY}/{budget}.gin", f"{STUDY}/{method}.gin", f"gin_configs/jobs/{task}.gin"]


def make_run(
    task: str, method: str, seed: int, foundation: Path, folder: Path, bindings: Sequence[str]
) -> Run:
    """Trains, validates and tests one run in this process; its folder is removed."""
    return tune(files_of(task, method), foundation, seed, folder, bindings)


def rows_of(
    run: Run, task: str, method: str, seed: int, conditions: Mapping[str, object]
) -> list[Row]:
    """Rows of one run, without its steps to 90%; `conditions` are of `conditions_of`."""
    rows = metric_rows(
        {name: run.figures[name] for name in TASKS[task]},
        model=METHODS[method],
        dataset=task,
        split=SPLIT,
        seed=seed,
        gin_file=f"{STUDY}/{method}.gin",
        seconds=run.seconds,
    )
    known = {"task": task, "method": method, **conditions, **run.known()}
    known |= {"steps_to_90_percent": None}
    return [row | known for row in rows]


def with_steps(rows: Iterable[Row]) -> list[Row]:
    """The rows with steps to 90% of full fine-tuning's mean gain, where that was run."""
    rows = [dict(row) for row in rows]
    for task in TASKS:
        ends = [
            row["curve"][-1][1] for row in rows if (row["task"], row["method"]) == (task, "full")
        ]
        for row in rows:
            if row["task"] == task and ends:
                curve = [(int(step), float(value)) for step, value in row["curve"]]
                row["steps_to_90_percent"] = steps_to_share(curve, statistics.fmean(ends))
    return rows


def means_over_tasks(rows: Sequence[Row]) -> list[Row]:
    """A row per method and seed that ran on every task: the mean of its AUC over the tasks."""
    found: list[Row] = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in rows):
        own = {
            row["task"]: row
            for row in rows
            if (row["method"], row["seed"], row["metric"]) == (method, seed, "auc")
        }
        if set(own) != set(TASKS):
            continue
        steps = [row["steps_to_90_percent"] for row in own.values()]
        first = next(iter(own.values()))
        found.append(
            {
                **{k: v for k, v in first.items() if k not in OF_ONE_RUN},
                "dataset": ALL_TASKS,
                "task": ALL_TASKS,
                "value": round(statistics.fmean(row["value"] for row in own.values()), 6),
                "trainable_share": statistics.fmean(r["trainable_share"] for r in own.values()),
                "steps_to_90_percent": None if None in steps else statistics.fmean(steps),
            }
        )
    return found


def study(
    foundation: Path,
    runs: Sequence[tuple[str, str, int]],
    output: Path,
    bindings: Sequence[str] = (),
) -> list[Row]:
    """Makes the runs that are missing and writes the result file after each.

    Args:
      foundation: MODEL_DIR of the foundation.
      runs: (task, method, seed).
      output: folder for runs while they train.
      bindings: gin bindings of every run.

    Returns:
      All rows of the file.

    Raises:
      DataError: rows of another foundation, or with other bindings or steps, are there.
      M6RecError: a run failed.
    """
    path, fingerprint = results_path(RESULTS), backbone_of(foundation)
    bar = progress_bar(runs, unit="run", desc="tuning")
    for task, method, seed in bar:
        name = f"{task}-{method}-{seed}"
        # Another command of this table would make the same run, and remove this one's folder.
        lock = path.with_name(f"{RESULTS}-{name}")
        with locked(lock, f"waiting for another command to be done with {name}"):
            rows = [row for row in read_results(path).rows if row["task"] != ALL_TASKS]
            conditions = conditions_of(fingerprint, files_of(task, method), bindings)
            of_all = {key: conditions[key] for key in ("foundation", "bindings")}
            refuse_others(path, rows, foundation, of_all)
            # A task's methods are compared by their steps.
            of_task = [row for row in rows if row["task"] == task]
            steps = {"train_steps": conditions["train_steps"]}
            refuse_others(path, of_task, foundation, of_all | steps)
            alike = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            refuse_others(path, alike, foundation, conditions)
            if any(row["seed"] == seed for row in alike):
                continue
            run = make_run(task, method, seed, foundation, output / name, bindings)
            bar.write(f"{task}, {method}, seed {seed}: AUC {run.figures['auc']:.4f}")
            add_rows(path, rows_of(run, task, method, seed, conditions), derive=with_what_follows)
    return list(read_results(path).rows)


def with_what_follows(rows: Iterable[Row]) -> list[Row]:
    """Rows of runs with their steps to 90%, then means over tasks, made anew from all of them."""
    runs = with_steps(row for row in rows if row["task"] != ALL_TASKS)
    return [*runs, *means_over_tasks(runs)]


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Methods of tuning x tasks x seeds.")
    parser.add_argument("--foundation", type=Path, default=ROOT / "runs" / "foundation_answers")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[*METHODS],
        default=[name for name in METHODS if name not in WITHOUT_WORDS],
        help="default: the eight whose heads start from words",
    )
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
    start_with_huge_pages()
    sys.exit(main())
