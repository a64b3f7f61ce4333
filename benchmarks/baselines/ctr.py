"""Click models on MovieLens-100k, per-user temporal split, label = 4 stars or more.

    python -m benchmarks.baselines.ctr                       # everything that has no rows yet
    python -m benchmarks.baselines.ctr --models FM DIN --seeds 1 2 3 --force
    python -m benchmarks.baselines.ctr --samples 256 4096 all --models FM DIN --seeds 0 1 2

RecBole's logistic regression, FM, DeepFM, Wide&Deep and DIN with RecBole's own settings, on the
very rows that our models see. Rows go to `benchmarks/results/movielens_ctr.json` as each run ends,
so the study can be stopped and resumed. With `--samples` they learn from that many training rows
alone (a seed is also that of the draw; export_splits must have written it), and rows go to
`benchmarks/results/few_samples.json`, beside ours. Popularity and means are those of `m6rec eval`
(`benchmarks.movielens`).
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

from benchmarks.baselines import recbole_ctr
from benchmarks.baselines.exported_splits import (
    few_shot_column,
    number_of_samples,
    read_exported,
)
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, read_results, results_path
from m6rec_jax.metrics.classification import log_loss, ordering_metrics

DATASET, SPLIT = "movielens-100k", "per_user_temporal"
# Cheap models first: a study that is stopped has most of its rows.
MODELS = ("LR", "FM", "WideDeep", "DeepFM", "DIN")
FEW_SAMPLES_MODELS = ("FM", "DIN")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=ROOT / "runs" / "baselines" / DATASET, help="exported splits"
    )
    parser.add_argument("--models", nargs="+", help="default: all, or FM and DIN of few samples")
    parser.add_argument("--samples", nargs="+", type=number_of_samples, help="of training rows")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 1 2 3, or 0 1 2 of draws")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cap", type=float, default=1800.0, help="seconds of training after which a run is cut off"
    )
    parser.add_argument("--force", action="store_true", help="run again what has rows already")
    options = parser.parse_args(arguments)
    of_samples = options.samples is not None
    models = options.models or (FEW_SAMPLES_MODELS if of_samples else MODELS)
    if unknown := [name for name in models if name not in MODELS]:
        parser.error(f"unknown models {unknown}; known: {list(MODELS)}")
    seeds = options.seeds or ([0, 1, 2] if of_samples else [1, 2, 3])

    data = read_exported(options.data)
    path = results_path("few_samples" if of_samples else "movielens_ctr")
    for count, model, seed in itertools.product(options.samples or [None], models, seeds):
        # Rows of all seeds of a few-shot split stand under one name.
        split = few_shot_column(count, seed) if of_samples else SPLIT
        name = split.removesuffix(f"_{seed}") if of_samples else SPLIT
        if not options.force and (model, DATASET, name, seed) in read_results(path).runs:
            print(f"{model}, {name}, seed {seed}: has rows already", flush=True)
            continue
        start = time.monotonic()
        run = recbole_ctr.train_and_score(
            data,
            model,
            seed,
            options.data / "recbole",
            split=split,
            threads=options.threads,
            cap=options.cap,
        )
        seconds = time.monotonic() - start
        test = data.rows(split, "test")
        label = data.label[test]
        metrics = {
            **ordering_metrics(data.user[test], label, run.scores)[0],
            "log_loss": log_loss(label, run.scores),
        }
        rows = metric_rows(
            metrics,
            model=model,
            config=run.config,
            dataset=DATASET,
            split=name,
            seed=seed,
            seconds=seconds,
            note=run.note,
        )
        if of_samples:
            samples = len(data.rows(split, "train"))
            rows = [row | {"samples": samples} for row in rows]
        add_rows(path, rows)
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
        told = f"{figures} ({seconds:.0f} s) {run.note or ''}"
        print(f"{model}, {name}, seed {seed}: {told}", flush=True)


if __name__ == "__main__":
    main()
