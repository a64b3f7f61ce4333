"""Quality against training samples: MovieLens-100k, of which only n ratings are known.

    python -m benchmarks.few_samples --foundation runs/foundation_books
        [--samples 64 256 1024 4096] [--seeds 0 1 2] [--methods means regression tuning]

For each number of samples and seed, n ratings are drawn from the training part of the per-user
split. Nothing else is known: the histories and statistics of training, validation and test rows
hold those n ratings alone (`few_shot:n=N,seed=S,history=sampled`). The validation part says when to
stop (1,000 rows of it) and which penalty is best; the test part is that of all other results. Three
things learn from the n ratings:

    means         user's and item's smoothed mean
    regression    logistic regression on the pieces that the model reads, penalty by validation
    tuning        option-adapter tuning of the foundation and pooling, each run at the best of its
                  validations, the mean of three runs

A fair foundation has read no user and no rating of a film: `python -m benchmarks.foundation
--books`.

Runs whose rows stand in `benchmarks/results/few_samples.json` are not made again; rows of another
foundation are an error. Beside the usual keys a row has `samples`, and those of tuning
`foundation`, `trainable_share`, and a list of the runs' `step`, the best one of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.command_line import errors_told, with_bindings
from benchmarks.movielens import DATASET
from benchmarks.provenance import ROOT
from benchmarks.results_file import (
    Row,
    add_rows,
    metric_rows,
    read_results,
    results_path,
    runs_in,
)
from benchmarks.runs import DATA, Run, backbone_of, m6rec, refuse_others, tune
from m6rec_jax.data.splitting.splits import Split
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.metrics.classification import log_loss, ordering_metrics

RESULTS = "few_samples"
GIN_FILE = "gin_configs/studies/few_samples.gin"
# How many runs answer together.
RUNS = 3
PREPARE = f"{DATA}/{DATASET}/prepare_few_samples.gin"
RATINGS, LIKED = (1, 2, 3, 4, 5), 4
METRICS = ("auc", "user_averaged_auc", "log_loss")
SAMPLES = (64, 256, 1024, 4096)

MEANS, REGRESSION = "user mean + item mean", "logistic regression"
TUNED = f"option-adapter tuning and pooling, mean of {RUNS}"
TUNING = "tuning"
# Methods: what tables call them.
METHODS = {"means": MEANS, "regression": REGRESSION, TUNING: TUNED}
# Inverse strengths of the penalty that validation chooses from.
STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True, slots=True)
class Sample:
    """Which training ratings are known.

    Attributes:
      count: how many.
      seed: of the draw.
    """

    count: int
    seed: int

    @property
    def label(self) -> str:
        """The `split` of its rows in the result file."""
        return f"few_shot_{self.count}"

    def split(self) -> str:
        """As `m6rec data prepare` takes it."""
        return f"few_shot:n={self.count},seed={self.seed},history=sampled"


@contextmanager
def prepared_sample(sample: Sample) -> Iterator[Prepared]:
    """Prepares a sample's rows, and removes them afterwards."""
    from m6rec_jax.pipeline import locations

    split = sample.split()
    m6rec(
        *("data", "prepare", DATASET, "--gin_file", PREPARE, f"--gin.SPLIT='{split}'"),
        "--gin.VIEWS=('groups',)",
    )
    prepared = locations.prepared(DATASET, Split.parse(split).name)
    try:
        yield prepared
    finally:
        shutil.rmtree(prepared.tfds_folder("groups").parent)
        shutil.rmtree(prepared.folder)


@contextmanager
def scoring_task(split: str) -> Iterator[str]:
    """Registers the tasks of a prepared split; gives the one whose classes are ratings."""
    from m6rec_jax.pipeline.registration import register_recommendation_tasks, unregister

    name = "movielens_100k_few_samples"
    names = register_recommendation_tasks(
        name, DATASET, split=split, rating_values=RATINGS, positive_rating=LIKED
    )
    try:
        yield f"{name}_ctr_ratings"
    finally:
        unregister(names)


def figures_of(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """`METRICS` of probabilities `[n]`."""
    return {
        **ordering_metrics(users, labels, scores)[0],
        "log_loss": log_loss(labels, scores),
    }


def means(task: str, prepared: Prepared) -> dict[str, float]:
    """Test figures of the user's mean, of all that histories hold, and the item's together.

    Args:
      task: of `scoring_task`.
      prepared: its split.
    """
    from m6rec_jax.evaluation.evaluator import Evaluator
    from m6rec_jax.jobs.scoring import mean_baselines
    from m6rec_jax.pipeline.prepared_rows import interactions

    test = interactions(prepared, "test")
    evaluator = Evaluator(task, {"inputs": 1, "targets": 1}, split="test")
    means = mean_baselines(evaluator.evaluation(evaluator.tasks[0])).scores(test.users, test.items)
    return figures_of(test.users, test.labels, means["user_and_item_mean"])


def regression(task: str, lengths: Mapping[str, int], vocab_size: int) -> dict[str, float]:
    """Test figures of a logistic regression on the pieces of a task's rows.

    Args:
      task: of `scoring_task`.
      lengths: `{"inputs": S, "targets": T}`, to which the model's rows are cut.
      vocab_size: ids of pieces are below it.
    """
    from sklearn.linear_model import LogisticRegression

    from benchmarks.piece_bags import piece_bags

    positive = [place for place, rating in enumerate(RATINGS) if rating >= LIKED]
    train, validation, test = (
        piece_bags(task, lengths, part, vocab_size) for part in ("train", "validation", "test")
    )
    labels = {
        part: np.isin(bags.classes, positive).astype(np.int64)
        for part, bags in (("train", train), ("validation", validation), ("test", test))
    }
    fitted = [
        LogisticRegression(C=strength, max_iter=1000).fit(train.pieces, labels["train"])
        for strength in STRENGTHS
    ]
    best = min(
        fitted,
        key=lambda model: log_loss(
            labels["validation"], model.predict_proba(validation.pieces)[:, 1]
        ),
    )
    return figures_of(test.users, labels["test"], best.predict_proba(test.pieces)[:, 1])


def rows_of(
    figures: Mapping[str, float],
    model: str,
    sample: Sample,
    *,
    settings: Mapping[str, object] | None = None,
    **how: object,
) -> list[Row]:
    """Rows of one model on one sample; `how` is for `metric_rows`."""
    rows = metric_rows(
        {name: figures[name] for name in METRICS},
        model=model,
        dataset=DATASET,
        split=sample.label,
        seed=sample.seed,
        **how,  # type: ignore[arg-type]
    )
    return [row | {"samples": sample.count} | dict(settings or {}) for row in rows]


def of_references(method: str, sample: Sample, prepared: Prepared) -> list[Row]:
    """Makes the rows of 'means' or 'regression' on a prepared sample.

    The regression reads rows of the tuning's own lengths, also beside a model that is told others.
    """
    from m6rec_jax import configuration

    unused = ["MODEL_DIR=''", "INITIAL_CHECKPOINT_PATH=''"]
    configuration.parse_config([GIN_FILE], unused)
    lengths = configuration.macro("TASK_FEATURE_LENGTHS")
    with scoring_task(prepared.manifest.split) as task:
        if method == "means":
            told = "likes, both smoothed with 5"
            return rows_of(means(task, prepared), MEANS, sample, config=told)
        figures = regression(task, lengths, int(configuration.macro("VOCAB_SIZE")))
    told = "pieces of history ({inputs} tokens) and candidate ({targets} in a row), L2"
    return rows_of(figures, REGRESSION, sample, config=told.format(**lengths))


def of_tuning(
    sample: Sample,
    prepared: Prepared,
    foundation: Path,
    output: Path,
    bindings: Sequence[str],
    fingerprint: str,
) -> list[Row]:
    """Tunes the foundation, whose backbone has this fingerprint, on a prepared sample."""
    with scoring_task(prepared.manifest.split) as task:
        runs = [
            tune(
                [GIN_FILE],
                foundation,
                # The first has the seed of the draw, the others some that no draw has.
                sample.seed + 1000 * number,
                output / f"{sample.label}-{sample.seed}",
                [f"MIXTURE_OR_TASK_NAME='{task}'", *bindings],
            )
            for number in range(RUNS)
        ]
    return rows_of(
        averaged_figures(runs),
        TUNED,
        sample,
        settings={
            "foundation": fingerprint,
            "trainable_share": runs[0].settings()["trainable_share"],
            "step": [run.step for run in runs],
        },
        gin_file=GIN_FILE,
        seconds=sum(run.seconds for run in runs),
    )


def averaged_figures(runs: Sequence[Run]) -> dict[str, float]:
    """Test figures of the mean of the runs' probabilities."""
    from m6rec_jax.jobs.scoring import scoring_metrics

    probabilities = np.mean([run.predictions.probabilities for run in runs], axis=0)
    return scoring_metrics(dataclasses.replace(runs[0].predictions, probabilities=probabilities))


def study(
    samples: Sequence[Sample],
    methods: Sequence[str],
    foundation: Path,
    output: Path,
    bindings: Sequence[str] = (),
) -> list[Row]:
    """Makes the rows that are missing and writes the result file after each.

    Args:
      samples: numbers of ratings and seeds of the draws.
      methods: of `METHODS`.
      foundation: MODEL_DIR of the foundation; it must exist for 'tuning' alone.
      output: folder for runs while they train.
      bindings: gin bindings of every tuning run.

    Returns:
      All rows of the file.

    Raises:
      DataError: rows of another foundation are there.
      M6RecError: a run failed.
    """
    path = results_path(RESULTS)
    fingerprint = ""
    if TUNING in methods:
        fingerprint = backbone_of(foundation)
        tuned = [row for row in read_results(path) if row["model"] == TUNED]
        refuse_others(path, tuned, foundation, fingerprint)
    bar = progress_bar(samples, unit="sample", desc="few samples")
    for sample in bar:
        done = runs_in(path)
        missing = [
            method
            for method in methods
            if (METHODS[method], DATASET, sample.label, sample.seed) not in done
        ]
        if not missing:
            continue
        with prepared_sample(sample) as prepared:
            for method in missing:
                if method == TUNING:
                    rows = of_tuning(sample, prepared, foundation, output, bindings, fingerprint)
                else:
                    rows = of_references(method, sample, prepared)
                add_rows(path, rows)
                told = ", ".join(f"{row['metric']} {row['value']:.4f}" for row in rows)
                bar.write(f"{sample.label}, seed {sample.seed}, {METHODS[method]}: {told}")
    return read_results(path)


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Quality against training samples.")
    parser.add_argument("--foundation", type=Path, default=ROOT / "runs" / "foundation_books")
    parser.add_argument("--samples", nargs="+", type=int, default=[*SAMPLES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / RESULTS)
    options, bindings = with_bindings(parser, arguments)
    # Seeds first: after one of them the curve can be drawn.
    samples = [Sample(count, seed) for seed in options.seeds for count in options.samples]
    study(
        samples,
        options.methods,
        options.foundation.resolve(),
        options.output.resolve(),
        bindings,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
