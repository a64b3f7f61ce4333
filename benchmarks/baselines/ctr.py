"""Click models on MovieLens-100k, per-user temporal split, label = 4 stars or more.

    python -m benchmarks.baselines.ctr                       # everything that has no rows yet
    python -m benchmarks.baselines.ctr --models FM --seeds 1 2 3 --force

RecBole's logistic regression, FM, DeepFM and Wide&Deep with RecBole's own settings, on the
very rows that our models see. Rows go to `benchmarks/results/movielens_ctr.json` as each run ends,
so the study can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

from benchmarks.baselines import recbole_ctr
from benchmarks.baselines.exported_splits import read_exported
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path, runs_in
from m6rec_jax.metrics.classification import log_loss, ordering_metrics

DATASET, SPLIT = "movielens-100k", "per_user_temporal"
# Cheap models first: a study that is stopped has most of its rows.
MODELS = ("LR", "FM", "WideDeep", "DeepFM")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=ROOT / "runs" / "baselines" / DATASET, help="exported splits"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cap", type=float, default=1800.0, help="seconds of training after which a run is cut off"
    )
    parser.add_argument("--force", action="store_true", help="run again what has rows already")
    options = parser.parse_args(arguments)
    data = read_exported(options.data)
    path = results_path("movielens_ctr")
    for model, seed in itertools.product(options.models, options.seeds):
        if not options.force and (model, DATASET, SPLIT, seed) in runs_in(path):
            print(f"{model}, seed {seed}: has rows already", flush=True)
            continue
        start = time.monotonic()
        run = recbole_ctr.train_and_score(
            data,
            model,
            seed,
            options.data / "recbole",
            threads=options.threads,
            cap=options.cap,
        )
        seconds = time.monotonic() - start
        test = data.rows(SPLIT, "test")
        label = data.label[test]
        metrics = {
            **ordering_metrics(data.user[test], label, run.scores)[0],
            "log_loss": log_loss(label, run.scores),
        }
        rows = metric_rows(
            metrics,
            model=model,
            config=f"{run.config}; {run.note}" if run.note else run.config,
            dataset=DATASET,
            split=SPLIT,
            seed=seed,
            seconds=seconds,
        )
        add_rows(path, rows)
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
        print(f"{model}, seed {seed}: {figures} ({seconds:.0f} s) {run.note or ''}", flush=True)


if __name__ == "__main__":
    main()
