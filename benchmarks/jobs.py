"""Every job of a recommender on one foundation, over seeds, beside fair baselines.

    python -m benchmarks.jobs --foundation runs/foundation [--books runs/foundation_books]
        [--jobs explanation conversation] [--seeds 0 1 2] [--inspired FOLDER]
        [--gin.TRAIN_STEPS=100]

Prepares the data, trains every job of `job_list` from the foundation (`python -m
benchmarks.foundation`) by `m6rec train`, tests it by `m6rec eval`, and measures the baselines on
the same rows by the same functions (`job_baselines`). Retrieval is tested twice: by the two towers
alone, and, after `m6rec calibrate`, as the hybrid. A job whose rows stand in
`benchmarks/results/jobs.json` is left out; rows of the same table that are of another foundation,
of other bindings or of another number of steps, are an error. A training run that was interrupted
goes on. Several of these commands may run side by side, with other seeds or jobs, each on a
processor of its own:

    taskset -c 0 python -m benchmarks.jobs --seeds 0 &
    taskset -c 1 python -m benchmarks.jobs --seeds 1

Of the run of explanations with seed 0 ten texts go to `docs/explanation_examples.md`.

Steps in the gin files are meant for about five minutes of training each on one core at size mini,
20 for the run of all jobs; a seed for an hour and a half of one core, baselines included.

INSPIRED's dialogues come with no package (docs/data_sets.md): `--inspired` names a folder with them
and a dialogues.json. Without it conversation is left out, unless they were prepared before. So are
jobs of the foundation that has read of books alone, where there is none (`python -m
benchmarks.foundation --books`).

A row is one figure of one run, with

    job            as the table calls it
    split          the task whose test part it was measured on
    ours           the figure, as `value`
    baselines      name to figure (means over seeds, where they have some)
    foundation     fingerprint of the backbone
    foundation_name   which one that is, as `benchmarks.foundation` calls it
    bindings       the --gin.NAME=VALUE that the study was given, where something was trained
    train_steps    TRAIN_STEPS of the run, likewise
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import foundation as foundation_study
from benchmarks.command_line import errors_told, with_bindings
from benchmarks.explanation_examples import write_examples
from benchmarks.foundation import BOOKS_NAME, NAME
from benchmarks.job_list import (
    ALONE,
    INSPIRED,
    JOBS,
    SINGLES,
    WITHOUT_TOWERS,
    ZERO_SHOT,
    Job,
)
from benchmarks.movielens import evaluated, m6rec, train
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, read_results, results_path
from benchmarks.tuned_run import backbone_of, conditions_of, refuse_others
from m6rec_jax.data import views
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.sources import default_cache_dir
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.hashing import sha256

RESULTS = "jobs"
SIZE = "M6-Rec mini"
CALIBRATE = "gin_configs/runs/calibrate.gin"

# What the jobs read: (data set, split) to views.
VIEWS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("movielens-100k", "per_user_temporal"): ("groups", "next_items", *views.WRITING),
    ("movielens-100k", "leave_one_out"): ("next_items",),
    ("book-crossing-small", "per_user_temporal"): ("groups",),
    ("book-crossing-small", "leave_one_out"): ("next_items",),
    ("chitchat", "by_group"): ("documents",),
}

Figures = Mapping[str, float]


def prepare_data(inspired: Path | None) -> bool:
    """Fetches and prepares what is missing. Returns whether INSPIRED is there."""
    if not all(is_prepared(*split, wanted) for split, wanted in VIEWS.items()):
        foundation_study.prepare_data()
    if inspired is not None:
        m6rec("data", "prepare", inspired)
    return is_prepared(INSPIRED, "by_group", views.DIALOGUE_VIEWS)


def is_prepared(dataset: str, split: str, wanted: Sequence[str]) -> bool:
    """Whether these views of a split lie where tasks look for them."""
    try:
        found = Prepared.open(default_cache_dir(), dataset, split)
    except DataError:
        return False
    return set(wanted) <= set(found.manifest["views"])


def tested(job: Job, model_dir: Path, output: Path, *arguments: str) -> Figures:
    """Figures of a checkpoint on the test part of a job; see `evaluated`."""
    return evaluated(job.eval_gin_file, model_dir, output, *job.eval_bindings, *arguments)


def hybrid(job: Job, model_dir: Path, *, towers: bool = True) -> Figures:
    """Figures of `job.hybrid` as the hybrid, whose weights are learnt unless that was done.

    To be called once the two towers were evaluated alone, as they are until there are weights.
    """
    output = model_dir / ("hybrid.json" if towers else "without_towers.json")
    bound = () if towers else ("--gin.Reranking.towers=False",)
    if not output.exists():
        m6rec("calibrate", f"--gin.MODEL_DIR='{model_dir}'", *bound)
    return tested(job, model_dir, output, f"--gin.MIXTURE_OR_TASK_NAME='{job.hybrid}'", *bound)


def scaled(job: Job, model_dir: Path, output: Path) -> Figures:
    """Figures of a foundation, with probabilities that are learnt unless it was evaluated."""
    (task,) = job.tests
    if not output.exists():
        asked = ("--gin_file", CALIBRATE, "--gin_file", job.eval_gin_file)
        m6rec("calibrate", *asked, f"--gin.MODEL_DIR='{model_dir}'", "--gin.SPLIT='validation'")
    learnt = model_dir / "inference" / f"{task}_scaling.gin"
    return tested(job, model_dir, output, "--gin_file", str(learnt))


def figure_of(figures: Figures, task: str, metric: str) -> float | None:
    """A task's figure of an evaluation, of this task alone or of several; None: it has none."""
    return figures.get(f"{task}/{metric}", figures.get(metric))


class Study:
    """All runs from one foundation.

    Args:
      name: of the foundation.
      foundation: its MODEL_DIR.
      output: folder of the runs; those of another foundation, or with other bindings, lie in
        another one below it.
      bindings: gin bindings of every training run.
    """

    def __init__(
        self, name: str, foundation: Path, output: Path, bindings: Sequence[str] = ()
    ) -> None:
        self.name, self.foundation, self.bindings = name, foundation, bindings
        self.fingerprint = backbone_of(foundation)
        # What was trained with other bindings is not taken for what is missing here.
        other = f"-{sha256(repr(list(bindings)))[:8]}"
        self.output = output / (self.fingerprint + (other if bindings else ""))
        self.path = results_path(RESULTS)

    def run(self, name: str, seed: int) -> None:
        """Makes the rows of a job and a seed, unless they are there.

        Raises:
          DataError: rows of the same table are of another foundation, other bindings or steps, or a
            command failed.
        """
        job = JOBS[name]
        # Nothing is drawn where nothing is trained.
        of_seed = None if job.gin_file is None else seed
        rows = read_results(self.path).rows
        conditions = self._conditions(job, rows)
        made = {(row["model"], row["dataset"], row["split"], row["seed"]) for row in rows}
        wanted = {
            (f"{SIZE}, {job.model_of(task)}", test.dataset, task, of_seed)
            for task, test in job.tests.items()
        }
        if wanted <= made:
            print(f"{name}, seed {of_seed}: has rows already", flush=True)
            return
        seconds, figures = self._figures(name, job, seed)
        known = self._baselines(name, job, seed, figures)
        new = rows_of(job, figures, known, of_seed, seconds, conditions)
        if job.hybrid:
            folder = self.output / f"{name}-{seed}"
            of_hybrid = hybrid(job, folder)
            of_hybrids = {**known, WITHOUT_TOWERS: hybrid(job, folder, towers=False)}
            hybrids = rows_of(job, of_hybrid, of_hybrids, seed, seconds, conditions, is_hybrid=True)
            new = [*hybrids, *new]
        if name == "explanation" and seed == 0:
            write_examples(job.eval_gin_file, self.output / f"{name}-{seed}")
        add_rows(self.path, new)
        for row in new:
            if row["metric"] == job.tests[row["split"]].metrics[0]:
                told = f"{row['model']}, seed {of_seed}, {row['split']}: "
                told += f"{row['metric']} {row['ours']:.4f}"
                beside = "".join(f", {n} {value:.4f}" for n, value in row["baselines"].items())
                print(told + beside, flush=True)

    def _conditions(self, job: Job, rows: Sequence[Row]) -> dict[str, Any]:
        """Keys of a job's rows that say how it is made, once none of its tables is made otherwise.

        Tables of other jobs may be of an earlier foundation: the page says so beside them.
        """
        own: dict[str, Any] = {"foundation": self.fingerprint}
        if job.gin_file is not None:
            own = conditions_of(self.fingerprint, [job.gin_file], self.bindings, job.bindings)
        tests = {(test.job, task) for task, test in job.tests.items()}
        rows = [row for row in rows if (row["job"], row["split"]) in tests]
        # Older rows are all of the first.
        same = [row for row in rows if row.get("foundation_name", NAME) == self.name]
        refuse_others(self.path, same, self.foundation, own)
        return own | {"foundation_name": self.name}

    def _figures(self, name: str, job: Job, seed: int) -> tuple[float | None, Figures]:
        """Seconds of training and figures."""
        if job.gin_file is None:
            output = self.output / "untuned" / f"{name}.json"
            if job.scaled:
                return None, scaled(job, self.foundation, output)
            return None, tested(job, self.foundation, output)
        folder = self.output / f"{name}-{seed}"
        seconds = train(
            job.gin_file,
            folder,
            [
                f"--gin.INITIAL_CHECKPOINT_PATH='{self.foundation}'",
                f"--gin.train.seed={seed}",
                f"--gin.BatchIterator.seed={seed}",
                *job.bindings,
                *self.bindings,
            ],
        )
        return seconds, tested(job, folder, folder / "test.json")

    def _baselines(self, name: str, job: Job, seed: int, figures: Figures) -> dict[str, Figures]:
        """Baseline name to its figures, named as ours."""
        found: dict[str, Figures] = {}
        if job.own_baselines:
            output = self.output / "baselines" / f"{name}.json"
            if not output.exists():
                # Imported late: tensorflow and the tasks.
                from benchmarks.job_baselines import baselines_of

                output.parent.mkdir(parents=True, exist_ok=True)
                measured = baselines_of(job.eval_gin_file, job.eval_bindings)
                write_atomically(output, json.dumps(measured, indent=2) + "\n")
            found |= json.loads(output.read_text())
        if job.measured is not None:
            from benchmarks.job_baselines import measured_before

            found |= measured_before(*job.measured)
        for baseline in job.in_figures:
            start = f"{baseline}/"
            found[baseline] = {
                key.removeprefix(start): value
                for key, value in figures.items()
                if key.startswith(start)
            }
        if job.untuned:
            output = self.output / "untuned" / f"{name}.json"
            found[ZERO_SHOT] = tested(job, self.foundation, output)
        if job.compared_with:
            alone: dict[str, float] = {}
            for task, own in job.compared_with.items():
                _, of_single = self._figures(f"only-{own}", SINGLES[own], seed)
                for metric in job.tests[task].metrics:
                    if (value := figure_of(of_single, task, metric)) is not None:
                        alone[f"{task}/{metric}"] = value
            found[ALONE] = alone
        return found


def rows_of(
    job: Job,
    figures: Figures,
    baselines: Mapping[str, Figures],
    seed: int | None,
    seconds: float | None,
    conditions: Mapping[str, Any],
    *,
    is_hybrid: bool = False,
) -> list[Row]:
    """Rows of one run, each beside its baselines.

    Args:
      job: what was run.
      figures: of the evaluation, `<task>/<figure>` where it has several tasks.
      baselines: name to figures, named in the same way.
      seed: None where nothing is drawn.
      seconds: of training.
      conditions: keys that say how it was made.
      is_hybrid: the figures are of `job.hybrid` as the hybrid; others have no rows then.

    Raises:
      DataError: the evaluation lacks all figures of a task.
    """
    rows: list[Row] = []
    for task, test in job.tests.items():
        if is_hybrid and task != job.hybrid:
            continue
        found = {metric: figure_of(figures, task, metric) for metric in test.metrics}
        own = {metric: value for metric, value in found.items() if value is not None}
        if not own:
            raise DataError(f"the evaluation of {job.eval_gin_file} has no figure of {task}")
        made = metric_rows(
            own,
            model=f"{SIZE}, {job.model_of(task, is_hybrid=is_hybrid)}",
            dataset=test.dataset,
            split=task,
            seed=seed,
            gin_file=job.gin_file or job.eval_gin_file,
            seconds=seconds,
        )
        for row in made:
            known = {
                name: round(value, 6)
                for name, of in baselines.items()
                if (value := figure_of(of, task, row["metric"])) is not None
            }
            rows.append(
                row | {"job": test.job, "ours": row["value"], "baselines": known} | dict(conditions)
            )
    return rows


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(
        description="Every job on one foundation, over seeds, beside baselines.",
        epilog="Further --gin.NAME=VALUE bindings are handed to every training run.",
    )
    parser.add_argument("--foundation", type=Path, default=ROOT / "runs" / "foundation")
    parser.add_argument(
        "--books", type=Path, default=ROOT / "runs" / BOOKS_NAME, help="the foundation of books"
    )
    parser.add_argument("--jobs", nargs="+", choices=[*JOBS], default=[*JOBS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--inspired", type=Path, help="folder of INSPIRED's files")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / RESULTS)
    options, bindings = with_bindings(parser, arguments)
    with_dialogues = prepare_data(options.inspired and options.inspired.resolve())
    left_out: dict[str, str] = {}
    for name in options.jobs:
        if name == "conversation" and not with_dialogues:
            told = "INSPIRED is not prepared; --inspired FOLDER names its files (docs/data_sets.md)"
            left_out[name] = told
        elif JOBS[name].foundation == BOOKS_NAME and not options.books.exists():
            made = "python -m benchmarks.foundation --books makes it"
            left_out[name] = f"there is no {options.books}; {made}"
    names = [name for name in options.jobs if name not in left_out]
    folders = {NAME: options.foundation, BOOKS_NAME: options.books}
    studies = {
        of: Study(of, folders[of].resolve(), options.output.resolve(), bindings)
        for of in dict.fromkeys(JOBS[name].foundation for name in names)
    }
    # Seeds first: after one of them the table has a line for every job.
    for seed, name in itertools.product(dict.fromkeys(options.seeds), names):
        studies[JOBS[name].foundation].run(name, seed)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
