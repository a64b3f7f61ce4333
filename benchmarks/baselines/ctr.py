"""Click models on MovieLens-100k, per-user temporal split, label = 4 stars or more.

    python -m benchmarks.baselines.ctr                       # everything that has no rows yet
    python -m benchmarks.baselines.ctr --models FM DIN --seeds 1 2 3 --force
    python -m benchmarks.baselines.ctr --samples 256 4096 all --models FM DIN --seeds 0 1 2

Four models of a few lines (counts and means, turned into probabilities on the validation part) and
RecBole's logistic regression, FM, DeepFM, Wide&Deep and DIN with RecBole's own settings, on the
very rows that our models see. Rows go to `benchmarks/results/movielens_ctr.json` as each run ends,
so the study can be stopped and resumed. With `--samples` RecBole's models learn from that many
training rows alone (a seed is also that of the draw; export_splits must have written it), and rows
go to `benchmarks/results/few_samples.json`, beside ours.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.baselines.exported_splits import (
    ExportedSplits,
    few_shot_column,
    number_of_samples,
    read_exported,
)
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, read_results, results_path
from m6rec_jax.metrics.classification import auc, log_loss, user_averaged_auc

DATASET, SPLIT = "movielens-100k", "per_user_temporal"
SMOOTHING = 5.0
# Cheap models first: a study that is stopped has most of its rows.
RECBOLE_MODELS = ("LR", "FM", "WideDeep", "DeepFM", "DIN")
FEW_SAMPLES_MODELS = ("FM", "DIN")


def smoothed_means(index: np.ndarray, value: np.ndarray, size: int) -> np.ndarray:
    """Mean value by user or item, drawn to the overall mean by `SMOOTHING` more rows: [size]."""
    total = np.bincount(index, weights=value, minlength=size)
    count = np.bincount(index, minlength=size)
    return (total + SMOOTHING * value.mean()) / (count + SMOOTHING)


def popularity(data: ExportedSplits) -> np.ndarray:
    """Logarithm of one plus the item's number of training rows: [events]."""
    train = data.rows(SPLIT, "train")
    return np.log1p(np.bincount(data.item[train], minlength=data.items.num_rows))[data.item]


def item_mean(data: ExportedSplits) -> np.ndarray:
    """The item's smoothed mean of stars in the training part: [events]."""
    train = data.rows(SPLIT, "train")
    return smoothed_means(data.item[train], data.value[train], data.items.num_rows)[data.item]


def user_mean(data: ExportedSplits) -> np.ndarray:
    """The user's smoothed share of likes in the training part: [events]."""
    train = data.rows(SPLIT, "train")
    return smoothed_means(data.user[train], data.label[train], data.users.num_rows)[data.user]


def user_and_item_mean(data: ExportedSplits) -> np.ndarray:
    """The sum of the user's and the item's smoothed mean of stars: [events]."""
    train = data.rows(SPLIT, "train")
    user = smoothed_means(data.user[train], data.value[train], data.users.num_rows)
    return user[data.user] + item_mean(data)


MEANS: dict[str, tuple[Callable[[ExportedSplits], np.ndarray], str]] = {
    "popularity": (popularity, "training ratings of the item"),
    "item mean": (item_mean, f"mean stars, smoothed with {SMOOTHING:g}"),
    "user mean": (user_mean, f"share of likes, smoothed with {SMOOTHING:g}"),
    "user mean + item mean": (user_and_item_mean, f"mean stars, both smoothed with {SMOOTHING:g}"),
}


def calibrated(data: ExportedSplits, score: np.ndarray) -> np.ndarray:
    """Turns a score into the chance of a like by a logistic curve fitted to the validation part.

    Args:
      score: [events].

    Returns:
      [test rows], probabilities in the order of the score.
    """
    fit, test = data.rows(SPLIT, "validation"), data.rows(SPLIT, "test")
    curve = LogisticRegression().fit(score[fit, None], data.label[fit])
    return curve.predict_proba(score[test, None])[:, 1]


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
    known = RECBOLE_MODELS if of_samples else (*MEANS, *RECBOLE_MODELS)
    models = options.models or (FEW_SAMPLES_MODELS if of_samples else known)
    if unknown := [name for name in models if name not in known]:
        parser.error(f"unknown models {unknown}; known: {list(known)}")
    seeds = options.seeds or ([0, 1, 2] if of_samples else [1, 2, 3])

    data = read_exported(options.data)
    path = results_path("few_samples" if of_samples else "movielens_ctr")
    for count, model, seed in itertools.product(options.samples or [None], models, seeds):
        # Rows of all seeds of a few-shot split stand under one name.
        split = few_shot_column(count, seed) if of_samples else SPLIT
        name = split.removesuffix(f"_{seed}") if of_samples else SPLIT
        if model in MEANS:
            if seed != seeds[0]:
                continue
            seed = None
        if not options.force and (model, DATASET, name, seed) in read_results(path).runs:
            print(f"{model}, {name}, seed {seed}: has rows already", flush=True)
            continue
        start = time.monotonic()
        note = None
        if model in MEANS:
            score, config = MEANS[model]
            scores = calibrated(data, score(data))
        else:
            # Imported late: the means and the tests do without RecBole and torch.
            from benchmarks.baselines import recbole_ctr

            run = recbole_ctr.train_and_score(
                data,
                model,
                seed,
                options.data / "recbole",
                split=split,
                threads=options.threads,
                cap=options.cap,
            )
            scores, note, config = run.scores, run.note, run.config
        seconds = time.monotonic() - start
        test = data.rows(split, "test")
        label = data.label[test]
        metrics = {
            "auc": auc(label, scores),
            "user_averaged_auc": user_averaged_auc(data.user[test], label, scores),
            "log_loss": log_loss(label, scores),
        }
        rows = metric_rows(
            metrics,
            model=model,
            config=config,
            dataset=DATASET,
            split=name,
            seed=seed,
            seconds=seconds,
            note=note,
        )
        if of_samples:
            samples = len(data.rows(split, "train"))
            rows = [row | {"samples": samples} for row in rows]
        add_rows(path, rows)
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
        told = f"{figures} ({seconds:.0f} s) {note or ''}"
        print(f"{model}, {name}, seed {seed}: {told}", flush=True)


if __name__ == "__main__":
    main()
