"""The MovieLens-100k examples over several seeds, beside the baselines' rows.

    python -m benchmarks.movielens [--jobs option_adapter full retrieval_full] [--seeds 0 1 2]

Prepares the data, pretrains the foundation once, then trains and tests every job with every seed,
each with the commands and the gin files that their own headers name. Retrieval is tested by the two
towers alone and, after `m6rec calibrate`, as the hybrid. What is finished is not run again; a
training run that was interrupted goes on where it stopped. Rows go to `benchmarks/results/`:
`movielens_ctr.json`, `movielens_retrieval.json` and `movielens_unseen_items.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from benchmarks.runs import DATA, Recipe, evaluated, hybrid, m6rec, train
from m6rec_jax.errors import DataError

DATASET = "movielens-100k"
FOUNDATION = Recipe("pretrain", "mini", DATASET)
PREPARE = ("--gin_file", f"{DATA}/{DATASET}/prepare.gin")
PREPARE_LEAVE_ONE_OUT = (*PREPARE, "--gin.SPLIT='leave_one_out'", "--gin.VIEWS=('next_items',)")
PREPARE_UNSEEN_ITEMS = ("--gin_file", f"{DATA}/{DATASET}/prepare_unseen_items.gin")
# Titles are not to be learnt by heart where everything trains.
_SLOW_EMBEDDINGS = "RATE_FACTORS={'relative_bias/': 5.0, 'token_embedder/': 0.2}"


@dataclass(frozen=True, slots=True)
class Job:
    """One example that is trained and tested.

    Attributes:
      model: its name in the tables.
      recipe: what `m6rec train` is given.
      results: name of the result file.
      split: of the data.
      metrics: which figures of the evaluation are kept.
      is_hybrid: whether it is tested as the hybrid, too.
      from_foundation: False where the foundation knows what must not be known.
    """

    model: str
    recipe: Recipe
    results: str
    split: str
    metrics: tuple[str, ...]
    is_hybrid: bool = False
    from_foundation: bool = True


_CTR = ("auc", "user_averaged_auc", "log_loss")
_RETRIEVAL = ("hit_rate@10", "ndcg@10", "hit_rate@50", "mrr")
_UNSEEN = (
    *("held_out/hit_rate@10", "held_out/hit_rate@50", "held_out/hit_rate@100"),
    *("held_out/chance@100", "held_out/num_examples", "hit_rate@10", "hit_rate@100"),
)
JOBS: Mapping[str, Job] = {
    "option_adapter": Job(
        "M6-Rec mini, option-adapter",
        Recipe("scoring", "mini", DATASET, "option_adapter"),
        "movielens_ctr",
        "per_user_temporal",
        _CTR,
    ),
    "full": Job(
        "M6-Rec mini, all parameters",
        Recipe(
            *("scoring", "mini", DATASET, "full"),
            bindings=(
                *("TRAIN_STEPS=450", "EVAL_PERIOD=150", "LEARNING_RATE=3e-3"),
                _SLOW_EMBEDDINGS,
            ),
        ),
        "movielens_ctr",
        "per_user_temporal",
        _CTR,
    ),
    "retrieval_full": Job(
        "M6-Rec mini, all parameters",
        Recipe("retrieval", "mini", DATASET, "full", (_SLOW_EMBEDDINGS,)),
        "movielens_retrieval",
        "leave_one_out",
        _RETRIEVAL,
        is_hybrid=True,
    ),
    "unseen_items": Job(
        "M6-Rec mini, all parameters, no foundation",
        Recipe("unseen_items", "mini", DATASET, "full"),
        "movielens_unseen_items",
        "held_out_items-ofleave_one_out-fraction0_1",
        _UNSEEN,
        from_foundation=False,
    ),
}


def prepare_data(jobs: Iterable[Job]) -> None:
    """Fetches and prepares the jobs' splits, with vocabularies; what is there stays."""
    m6rec("data", "fetch", DATASET)
    if any(job.from_foundation for job in jobs):
        m6rec("data", "prepare", DATASET, *PREPARE)
        m6rec("data", "prepare", DATASET, *PREPARE_LEAVE_ONE_OUT)
        m6rec("vocab", "train", *PREPARE)
    if not all(job.from_foundation for job in jobs):
        m6rec("data", "prepare", DATASET, *PREPARE_UNSEEN_ITEMS)
        m6rec("vocab", "train", *PREPARE_UNSEEN_ITEMS)


def run_job(job: Job, seed: int, foundation: Path, folder: Path) -> None:
    """Trains one job with one seed, tests it and records the figures.

    Raises:
      DataError: a command failed, or the evaluation lacks a figure.
    """
    bindings = [f"--gin.train.seed={seed}", f"--gin.BatchIterator.seed={seed}"]
    if job.from_foundation:
        bindings.insert(0, f"--gin.INITIAL_CHECKPOINT_PATH='{foundation}'")
    seconds: float | None = train(job.recipe, folder, bindings)
    figures = {job.model: evaluated(folder, folder / "test.json")}
    if job.is_hybrid:
        figures[f"{job.model}, hybrid"] = hybrid(folder)
    for model, of_model in figures.items():
        if missing := set(job.metrics) - set(of_model):
            raise DataError(f"the evaluation of {folder} lacks {', '.join(sorted(missing))}")
        kept = {name: of_model[name] for name in job.metrics}
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in kept.items())
        print(f"{model}, seed {seed}: {shown}", flush=True)
        rows = metric_rows(
            kept,
            model=model,
            dataset=DATASET,
            split=job.split,
            seed=seed,
            gin_file=job.recipe.gin_file,
            seconds=seconds if model == job.model else None,
        )
        add_rows(results_path(job.results), rows)


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The MovieLens-100k examples over seeds.")
    parser.add_argument("--jobs", nargs="+", choices=[*JOBS], default=[*JOBS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "movielens")
    options = parser.parse_args(arguments)
    foundation = options.output.resolve() / "foundation"
    chosen = [JOBS[name] for name in options.jobs]
    prepare_data(chosen)
    if any(job.from_foundation for job in chosen):
        train(FOUNDATION, foundation)
    for seed in dict.fromkeys(options.seeds):
        for name in options.jobs:
            run_job(JOBS[name], seed, foundation, options.output.resolve() / f"{name}-{seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
