"""Every job of a recommender on one foundation, over seeds, beside fair baselines.

    python -m benchmarks.jobs --foundation runs/foundation [--books runs/foundation_books]
        [--jobs explanation conversation] [--seeds 0 1 2] [--inspired FOLDER]

Prepares the data, trains every job of `job_list` from the foundation (`python -m
benchmarks.foundation`) by `m6rec train`, tests it by `m6rec eval`, and measures the baselines on
the same rows by the same functions (`job_baselines`). Retrieval is tested twice: by the two towers
alone, and, after `m6rec calibrate`, as the hybrid. A job whose rows stand in
`benchmarks/results/jobs.json` is left out; rows of another foundation in the same table are an
error. A training run that was interrupted goes on.

Steps in the gin files are meant for about five minutes of training each on one core at size mini.

INSPIRED's dialogues come with no package (docs/prepared_data.md): `--inspired` names a folder with
them and a dialogues.json. Without it conversation is left out, unless they were prepared before. So
are jobs of the foundation that has read of books alone, where there is none (`python -m
benchmarks.foundation --books`).

A row is one figure of one run, with

    job            as the table calls it
    split          the task whose test part it was measured on
    ours           the figure, as `value`
    baselines      name to figure (means over seeds, where they have some)
    foundation     fingerprint of the backbone
    foundation_name   which one that is, as `benchmarks.foundation` calls it
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import foundation as foundation_study
from benchmarks.command_line import errors_told
from benchmarks.foundation import BOOKS_NAME, NAME
from benchmarks.job_list import INSPIRED, JOBS, WITHOUT_TOWERS, ZERO_SHOT, Job
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, read_results, results_path
from benchmarks.runs import backbone_of, evaluated, hybrid, m6rec, refuse_others, train
from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.data.store import views
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.text.writing_templates import WRITING

RESULTS = "jobs"
SIZE = "M6-Rec mini"

# What the jobs read: (data set, split) to views.
VIEWS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("movielens-100k", "per_user_temporal"): ("groups", "next_items", *WRITING),
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
        prepared = Prepared.open(default_cache_dir(), dataset, split)
    except DataError:
        return False
    return set(wanted) <= set(prepared.manifest.views)


def tested(job: Job, model_dir: Path, output: Path, *arguments: str) -> Figures:
    """Figures of a checkpoint on the test part of a job; see `evaluated`."""
    return evaluated(model_dir, output, *job.bindings, *arguments)


def scaled(job: Job, model_dir: Path, output: Path) -> Figures:
    """Figures of a foundation, with probabilities that are learnt unless it was evaluated."""
    if not output.exists():
        m6rec("calibrate", f"--gin.MODEL_DIR='{model_dir}'", *job.bindings)
    learnt = model_dir / "inference" / f"{job.task}_scaling.gin"
    return tested(job, model_dir, output, "--gin_file", str(learnt))


class Study:
    """All runs from one foundation.

    Args:
      name: of the foundation.
      foundation: its MODEL_DIR.
      output: folder of the runs; those of another foundation lie in another one below it.
    """

    def __init__(self, name: str, foundation: Path, output: Path) -> None:
        self.name, self.foundation = name, foundation
        self.fingerprint = backbone_of(foundation)
        self.output = output / self.fingerprint
        self.path = results_path(RESULTS)

    def run(self, name: str, seed: int) -> None:
        """Makes the rows of a job and a seed, unless they are there.

        Raises:
          DataError: rows of the same table are of another foundation, or a command failed.
        """
        job = JOBS[name]
        # Nothing is drawn where nothing is trained.
        of_seed = seed if job.is_trained else None
        rows = [
            row
            for row in read_results(self.path)
            if (row["job"], row["split"], row["foundation_name"])
            == (job.title, job.task, self.name)
        ]
        refuse_others(self.path, rows, self.foundation, self.fingerprint)
        if of_seed in {row["seed"] for row in rows}:
            print(f"{name}, seed {of_seed}: has rows already", flush=True)
            return
        folder = self.output / f"{name}-{seed}"
        seconds, figures = self._figures(name, job, seed, folder)
        baselines = self._baselines(name, job, figures, folder)
        if job.is_retrieval:
            of_hybrid = hybrid(folder, *job.bindings)
            without = hybrid(folder, *job.bindings, towers=False)
            beside = {**baselines, WITHOUT_TOWERS: without}
            new = self._rows(job, "hybrid", of_hybrid, beside, seed, seconds)
            new += self._rows(job, "the two towers alone", figures, baselines, seed, seconds)
        else:
            new = self._rows(job, "", figures, baselines, of_seed, seconds)
        add_rows(self.path, new)
        for row in new:
            if row["metric"] == job.metrics[0]:
                shown = "".join(f", {n} {value:.4f}" for n, value in row["baselines"].items())
                print(f"{row['model']}, seed {of_seed}: {row['ours']:.4f}{shown}", flush=True)

    def _figures(
        self, name: str, job: Job, seed: int, folder: Path
    ) -> tuple[float | None, Figures]:
        """Seconds of training and figures."""
        if not job.is_trained:
            return None, scaled(job, self.foundation, self.output / "untuned" / f"{name}.json")
        start = f"--gin.INITIAL_CHECKPOINT_PATH='{self.foundation}'"
        seeds = [f"--gin.train.seed={seed}", f"--gin.BatchIterator.seed={seed}"]
        seconds = train(job.recipe, folder, [start, *seeds])
        return seconds, tested(job, folder, folder / "test.json")

    def _baselines(self, name: str, job: Job, figures: Figures, folder: Path) -> dict[str, Figures]:
        """Baseline name to its figures, named as ours."""
        # Imported late: tensorflow and the tasks.
        from benchmarks.job_baselines import baselines_of, measured_before

        baselines: dict[str, Figures] = {}
        if job.has_baselines:
            output = self.output / "baselines" / f"{name}.json"
            if not output.exists():
                output.parent.mkdir(parents=True, exist_ok=True)
                measured = baselines_of(folder, job.bindings)
                write_atomically(output, json.dumps(measured, indent=2) + "\n")
            baselines |= json.loads(output.read_text())
        if job.measured is not None:
            baselines |= measured_before(*job.measured)
        for baseline in job.in_figures:
            start = f"{baseline}/"
            baselines[baseline] = {
                key.removeprefix(start): value
                for key, value in figures.items()
                if key.startswith(start)
            }
        if job.untuned:
            output = self.output / "untuned" / f"{name}.json"
            baselines[ZERO_SHOT] = tested(job, self.foundation, output)
        return baselines

    def _rows(
        self,
        job: Job,
        how: str,
        figures: Figures,
        baselines: Mapping[str, Figures],
        seed: int | None,
        seconds: float | None,
    ) -> list[Row]:
        """Rows of one evaluation, each beside its baselines; `how` is part of the model's name."""
        rows = metric_rows(
            {metric: figures[metric] for metric in job.metrics},
            model=f"{SIZE}, {job.model}" + (f"; {how}" if how else ""),
            dataset=job.dataset,
            split=job.task,
            seed=seed,
            gin_file=job.recipe.gin_file,
            seconds=seconds,
        )
        return [
            row
            | {
                "job": job.title,
                "ours": row["value"],
                "baselines": {
                    name: round(of[row["metric"]], 6)
                    for name, of in baselines.items()
                    if row["metric"] in of
                },
                "foundation": self.fingerprint,
                "foundation_name": self.name,
            }
            for row in rows
        ]


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(
        description="Every job on one foundation, over seeds, beside baselines."
    )
    parser.add_argument("--foundation", type=Path, default=ROOT / "runs" / "foundation")
    parser.add_argument(
        "--books", type=Path, default=ROOT / "runs" / BOOKS_NAME, help="the foundation of books"
    )
    parser.add_argument("--jobs", nargs="+", choices=[*JOBS], default=[*JOBS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--inspired", type=Path, help="folder of INSPIRED's files")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / RESULTS)
    options = parser.parse_args(arguments)
    with_dialogues = prepare_data(options.inspired and options.inspired.resolve())
    left_out: dict[str, str] = {}
    for name in options.jobs:
        if name == "conversation" and not with_dialogues:
            why = "INSPIRED is not prepared; --inspired FOLDER names it (docs/prepared_data.md)"
            left_out[name] = why
        elif JOBS[name].foundation == BOOKS_NAME and not options.books.exists():
            made = "python -m benchmarks.foundation --books makes it"
            left_out[name] = f"there is no {options.books}; {made}"
    names = [name for name in options.jobs if name not in left_out]
    folders = {NAME: options.foundation, BOOKS_NAME: options.books}
    studies = {
        of: Study(of, folders[of].resolve(), options.output.resolve())
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
