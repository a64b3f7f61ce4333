"""The MovieLens-100k examples over several seeds, beside the baselines' rows.

    python -m benchmarks.movielens [--jobs option_adapter full retrieval] [--seeds 0 1 2]

Prepares the data, pretrains the foundation once, then trains and tests every job with every seed,
each with the commands and the gin files that their own headers name. What is finished is not run
again; a training run that was interrupted goes on where it stopped. Jobs
that rerank train the towers of `retrieval_full` first. Rows go to `benchmarks/results/`:
`movielens_ctr.json`, `movielens_retrieval.json` and `movielens_unseen_items.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command_line import errors_told
from benchmarks.locks import locked
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax.data.sources import default_cache_dir
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.retrieval import TWO_TOWERS
from m6rec_jax.metrics.baselines import MEAN_BASELINES

DATASET = "movielens-100k"
EXAMPLES = "gin_configs/examples"
FOUNDATION = f"{EXAMPLES}/movielens_pretrain.gin"
PREPARE = f"{EXAMPLES}/movielens_prepare.gin"
PREPARE_LEAVE_ONE_OUT = f"{EXAMPLES}/movielens_reranking_prepare.gin"
PREPARE_UNSEEN_ITEMS = f"{EXAMPLES}/movielens_unseen_items_prepare.gin"
RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One example that is trained and tested.

    Attributes:
      model: its name in the tables.
      gin_file, eval_gin_file: what `m6rec train` and `m6rec eval` are given.
      results: name of the result file.
      split: of the data.
      metrics: which figures of the evaluation are kept.
      towers: name of the job whose model is evaluated, with what this one trains as its reranker.
      trains: False where there is nothing to train beside the towers.
      from_foundation: False where the foundation knows what must not be known.
    """

    model: str
    gin_file: str
    eval_gin_file: str
    results: str
    split: str
    metrics: tuple[str, ...]
    towers: str = ""
    trains: bool = True
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
        f"{EXAMPLES}/movielens_ctr_option_adapter.gin",
        f"{EXAMPLES}/movielens_ctr_option_adapter.gin",
        "movielens_ctr",
        "per_user_temporal",
        _CTR,
    ),
    "full": Job(
        "M6-Rec mini, all parameters",
        f"{EXAMPLES}/movielens_ctr_full.gin",
        f"{EXAMPLES}/movielens_ctr_full.gin",
        "movielens_ctr",
        "per_user_temporal",
        _CTR,
    ),
    "retrieval": Job(
        "M6-Rec mini, option-adapter",
        f"{EXAMPLES}/movielens_retrieval.gin",
        f"{EXAMPLES}/movielens_retrieval_eval.gin",
        "movielens_retrieval",
        "leave_one_out",
        _RETRIEVAL,
    ),
    "retrieval_full": Job(
        "M6-Rec mini, all parameters",
        f"{EXAMPLES}/movielens_retrieval_full.gin",
        f"{EXAMPLES}/movielens_retrieval_eval.gin",
        "movielens_retrieval",
        "leave_one_out",
        _RETRIEVAL,
    ),
    "hybrid": Job(
        "M6-Rec mini, all parameters, hybrid",
        f"{EXAMPLES}/movielens_retrieval_full.gin",
        f"{EXAMPLES}/movielens_retrieval_eval.gin",
        "movielens_retrieval",
        "leave_one_out",
        _RETRIEVAL,
        towers="retrieval_full",
        trains=False,
    ),
    "reranking": Job(
        "M6-Rec mini, all parameters; scorer and co-occurrence rerank",
        f"{EXAMPLES}/movielens_reranking.gin",
        f"{EXAMPLES}/movielens_reranking_eval.gin",
        "movielens_retrieval",
        "leave_one_out",
        _RETRIEVAL,
        towers="retrieval_full",
    ),
    "unseen_items": Job(
        "M6-Rec mini, all parameters, no foundation",
        f"{EXAMPLES}/movielens_unseen_items.gin",
        f"{EXAMPLES}/movielens_unseen_items.gin",
        "movielens_unseen_items",
        "held_out_items-ofleave_one_out-fraction0_1",
        _UNSEEN,
        from_foundation=False,
    ),
}


def m6rec(*arguments: object) -> None:
    """Runs the command of the environment this runs in; data are made by one study at a time.

    Raises:
      DataError: it failed; what it printed says why.
    """
    command = [sys.executable, "-m", "m6rec_jax.cli", *map(str, arguments)]
    # Studies side by side want the same splits, and the command itself does not wait.
    makes_data = arguments[0] in ("data", "vocab")
    alone = locked(default_cache_dir(), "waiting for another study's data")
    with alone if makes_data else contextlib.nullcontext():
        done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise DataError(f"`m6rec {' '.join(command[3:])}` ended with status {done.returncode}")


def prepare_data(jobs: Iterable[Job]) -> None:
    """Fetches and prepares the jobs' splits, with vocabularies; what is there stays."""
    m6rec("data", "fetch", DATASET)
    if any(job.from_foundation for job in jobs):
        m6rec("data", "prepare", DATASET, "--gin_file", PREPARE)
        m6rec("data", "prepare", DATASET, "--gin_file", PREPARE_LEAVE_ONE_OUT)
        m6rec("vocab", "train", "--gin_file", PREPARE)
    if not all(job.from_foundation for job in jobs):
        m6rec("data", "prepare", DATASET, "--gin_file", PREPARE_UNSEEN_ITEMS)
        m6rec("vocab", "train", "--gin_file", PREPARE_UNSEEN_ITEMS)


def train(gin_file: str, folder: Path, bindings: Sequence[str] = ()) -> float | None:
    """Trains, unless that was done; returns the seconds it took (None where it was interrupted).

    Raises:
      DataError: the folder has a run that was begun with another gin file or other bindings.
    """
    record = folder / RECORD
    own: dict[str, Any] = {"gin_file": gin_file, "bindings": list(bindings)}
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(own | {"is_finished": False}))
    found = json.loads(record.read_text())
    if (theirs := {name: found[name] for name in own}) != own:
        raise DataError(
            f"{folder} has a run that was begun as {_told(**theirs)}, not as {_told(**own)}; "
            "give another --output, or remove the folder"
        )
    if not found["is_finished"]:
        resumed = (folder / "checkpoints").exists()
        started = time.monotonic()
        m6rec("train", "--gin_file", gin_file, f"--gin.MODEL_DIR='{folder}'", *bindings)
        seconds = None if resumed else time.monotonic() - started
        found |= {"is_finished": True, "seconds": seconds}
        record.write_text(json.dumps(found))
    return None if found["seconds"] is None else float(found["seconds"])


def evaluated(gin_file: str, model_dir: Path, output: Path, *arguments: str) -> dict[str, float]:
    """Figures of a checkpoint, evaluated unless that was done.

    Args:
      gin_file: of the evaluation.
      model_dir: of the checkpoint.
      output: where the figures are kept.
      arguments: further ones of `m6rec eval`.
    """
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        m6rec(
            *("eval", "--gin_file", gin_file, f"--gin.MODEL_DIR='{model_dir}'"),
            f"--gin.evaluate.output='{output}'",
            *arguments,
        )
    return json.loads(output.read_text())


def _told(gin_file: str, bindings: Sequence[str]) -> str:
    return " ".join(["--gin_file", gin_file, *bindings])


def run_job(job: Job, seed: int, foundation: Path, folder: Path) -> Mapping[str, float]:
    """Trains one job with one seed, tests it and records the figures.

    Seconds are those of the job's own training, not of its towers'. Popularity and means, which the
    evaluation of clicks gives, have rows of their own.
    """
    bindings = [f"--gin.train.seed={seed}", f"--gin.BatchIterator.seed={seed}"]
    if job.from_foundation:
        bindings.insert(0, f"--gin.INITIAL_CHECKPOINT_PATH='{foundation}'")
    tested, reranker = folder, list[str]()
    if job.towers:
        tested = folder.with_name(f"{job.towers}-{seed}")
        train(JOBS[job.towers].gin_file, tested, bindings)
    seconds = None
    if job.trains:
        seconds = train(job.gin_file, folder, bindings)
        reranker = [f"--gin.RERANKER='{folder}'"] if job.towers else []
    output = folder / "test.json"
    if job.towers and not output.exists():
        calibrate = ("calibrate", "--gin_file", "gin_configs/runs/calibrate.gin")
        asked = ("--gin_file", job.eval_gin_file, f"--gin.MODEL_DIR='{tested}'", *reranker)
        m6rec(*calibrate, *asked, "--gin.SPLIT='validation'")
    figures = evaluated(job.eval_gin_file, tested, output, *reranker)
    if lost := set(job.metrics) - set(figures):
        raise DataError(f"{output} lacks {', '.join(sorted(lost))}: {job.eval_gin_file} gives them")
    # Towers whose run has learnt to rerank since are evaluated beside the reranked list.
    own = {name: f"{TWO_TOWERS}/{name}" for name in ([] if job.towers else job.metrics)}
    kept = {name: float(figures.get(own.get(name, name), figures[name])) for name in job.metrics}
    rows = metric_rows(
        kept,
        model=job.model,
        dataset=DATASET,
        split=job.split,
        seed=seed,
        gin_file=job.gin_file,
        seconds=seconds,
    )
    for baseline in MEAN_BASELINES if job.metrics is _CTR else ():
        of = {name: figures.get(f"{baseline}/{name}") for name in _CTR}
        rows += metric_rows(
            {name: value for name, value in of.items() if value is not None},
            model=baseline.replace("_and_", " mean + ").replace("_", " "),
            dataset=DATASET,
            split=job.split,
            seed=None,
            config="m6rec eval",
        )
    add_rows(results_path(job.results), rows)
    return kept


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
            folder = options.output.resolve() / f"{name}-{seed}"
            figures = run_job(JOBS[name], seed, foundation, folder)
            told = ", ".join(f"{metric} {value:.4f}" for metric, value in figures.items())
            print(f"{name}, seed {seed}: {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
