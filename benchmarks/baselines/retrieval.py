"""Next-item models on MovieLens-100k, leave-one-out, all items ranked.

    python -m benchmarks.baselines.retrieval                 # everything that has no rows yet
    python -m benchmarks.baselines.retrieval --models SASRec --seeds 1 2 3 --force

A user's last event is the test item, the one before it the validation item. All 1,682 items are
ranked but those the user has seen; at test the validation item is part of the history. Popularity,
ItemKNN, EASE and co-occurrence are a few lines of numpy each and have no randomness; SASRec is
RecBole's module. Rows go to `benchmarks/results/movielens_retrieval.json` as each run ends.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.baselines.exported_splits import ExportedSplits, read_exported
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path, runs_in
from m6rec_jax.metrics.ranking import ranking_metrics, ranks_by_score

DATASET, SPLIT = "movielens-100k", "leave_one_out"


def interactions(data: ExportedSplits, *parts: str) -> np.ndarray:
    """Which items each user has rated in `parts`: float32 [users, items] of 0 and 1."""
    matrix = np.zeros((data.users.num_rows, data.items.num_rows), np.float32)
    for part in parts:
        rows = data.rows(SPLIT, part)
        matrix[data.user[rows], data.item[rows]] = 1
    return matrix


def targets(data: ExportedSplits, part: str) -> np.ndarray:
    """The held-out item of each user: int [users]."""
    rows = data.rows(SPLIT, part)
    assert np.array_equal(data.user[rows], np.arange(data.users.num_rows))
    return data.item[rows]


def popularity(train: np.ndarray, history: np.ndarray) -> np.ndarray:
    """Scores every item by its number of training events: [users, items]."""
    return np.broadcast_to(train.sum(0), history.shape)


def item_knn(train: np.ndarray, history: np.ndarray, neighbours: int = 100) -> np.ndarray:
    """Sum of cosine similarities to the history, over each item's nearest items.

    Similarity of an item to those beyond its `neighbours` nearest counts as 0.
    """
    norm = np.sqrt(train.sum(0))
    similarity = (train.T @ train) / np.maximum(np.outer(norm, norm), 1e-9)
    np.fill_diagonal(similarity, 0)
    far = np.argsort(-similarity, axis=0, kind="stable")[neighbours:]
    np.put_along_axis(similarity, far, 0, axis=0)
    return history @ similarity


def ease(train: np.ndarray, history: np.ndarray, penalty: float = 100.0) -> np.ndarray:
    """Steck's EASE: the item-item regression with zero diagonal, in closed form."""
    gram = (train.T @ train).astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return history @ weights


def co_occurrence(
    data: ExportedSplits,
    history_parts: Sequence[str],
    window: int = 10,
    recent: int = 10,
    smoothing: float = 20.0,
) -> np.ndarray:
    """Scores items by how near they stood to the user's last ones in what all users did.

    Two items of a training sequence that are d <= `window` places apart, in either order, count
    1/d. An item's score is its share of what stood near the k-th last item (and `smoothing` more),
    weighted 1/k and summed over the `recent` last ones.
    """
    near = np.zeros((data.items.num_rows, data.items.num_rows))
    training = data.rows(SPLIT, "train")
    users, items = data.user[training], data.item[training]
    for distance in range(1, window + 1):
        same = users[:-distance] == users[distance:]
        one, other = items[:-distance][same], items[distance:][same]
        np.add.at(near, (one, other), 1 / distance)
        np.add.at(near, (other, one), 1 / distance)
    shares = near / (near.sum(axis=1, keepdims=True) + smoothing)
    scores = np.zeros((data.users.num_rows, data.items.num_rows))
    rows = np.flatnonzero(np.isin(data.leave_one_out, history_parts))
    for user in range(data.users.num_rows):
        last = data.item[rows[data.user[rows] == user]][::-1][:recent]
        scores[user] = (1 / np.arange(1, len(last) + 1)) @ shares[last]
    return scores


CLOSED_FORM: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]] = {
    "popularity": (popularity, "training ratings of the item"),
    "ItemKNN": (item_knn, "cosine, k = 100"),
    "EASE": (ease, "λ = 100"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=ROOT / "runs" / "baselines" / DATASET, help="exported splits"
    )
    parser.add_argument("--models", nargs="+", default=[*CLOSED_FORM, "co_occurrence", "SASRec"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cap", type=float, default=1800.0, help="seconds of training after which a run is cut off"
    )
    parser.add_argument("--force", action="store_true", help="run again what has rows already")
    options = parser.parse_args(arguments)
    known = (*CLOSED_FORM, "co_occurrence", "SASRec")
    if unknown := [name for name in options.models if name not in known]:
        parser.error(f"unknown models {unknown}; known: {list(known)}")

    data = read_exported(options.data)
    train = interactions(data, "train")
    history = interactions(data, "train", "validation")
    path = results_path("movielens_retrieval")
    for model in options.models:
        for seed in options.seeds if model == "SASRec" else [None]:
            if not options.force and (model, DATASET, SPLIT, seed) in runs_in(path):
                print(f"{model}, seed {seed}: has rows already", flush=True)
                continue
            start = time.monotonic()
            if model in CLOSED_FORM:
                score, config = CLOSED_FORM[model]
                scores = score(train, history)
            elif model == "co_occurrence":
                scores = co_occurrence(data, ("train", "validation"))
                config = "places apart <= 10, the last 10 items, smoothed with 20"
            else:
                # Imported late: the closed forms and the tests do without RecBole and torch.
                from benchmarks.baselines import sasrec

                run = sasrec.train_and_score(data, seed, threads=options.threads, cap=options.cap)
                scores = run.scores
                config = f"{run.config}; {run.note}" if run.note else run.config
            seconds = time.monotonic() - start
            ranks = ranks_by_score(scores, targets(data, "test"), history > 0)
            metrics = ranking_metrics(ranks, ks=(10, 50))
            rows = metric_rows(
                metrics,
                model=model,
                config=config,
                dataset=DATASET,
                split=SPLIT,
                seed=seed,
                seconds=seconds,
            )
            add_rows(path, rows)
            figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"{model}, seed {seed}: {figures} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
