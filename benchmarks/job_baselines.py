"""Baselines of the study of jobs, measured on the rows and by the functions that measure ours.

By the kind of a task: for texts to write what the nearest training text says; for dialogues what
their nearest neighbours recommend; for retrieval popularity, ItemKNN and EASE. What a model of ids
reaches on MovieLens stands in the result files of `benchmarks.baselines` and is read from there.
Popularity and means beside scoring are those that `m6rec eval` gives.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines import neighbours, retrieval
from benchmarks.results_file import read_results, results_path
from m6rec_jax import configuration
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.dialogue_items import (
    RecommendationPredictions,
    recommendation_metrics,
    target_items,
)
from m6rec_jax.jobs.generation import metrics_of_texts
from m6rec_jax.jobs.retrieval import DEFAULT_KS
from m6rec_jax.metrics import ranking
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.registration import TaskInfo, evaluated_tasks

Figures = dict[str, float]
NEAREST = "TF-IDF nearest neighbour"
# Of EASE, of which validation rows choose one.
EASE_PENALTIES = (50.0, 100.0, 200.0, 500.0, 1000.0)


def baselines_of(run: Path, bindings: tuple[str, ...] = ()) -> dict[str, Figures]:
    """Figures of every baseline on the test rows that an evaluation reads.

    Args:
      run: what is evaluated.
      bindings: gin bindings of the evaluation.

    Returns:
      baseline name to figures; `<task>/<figure>` where the evaluation has several tasks.
    """
    import gin

    configuration.parse_config([run / CONFIG_FILE], bindings)
    try:
        limit = int(gin.query_parameter("evaluate.limit"))
    except ValueError:
        limit = 0
    tasks = evaluated_tasks(configuration.macro("MIXTURE_OR_TASK_NAME"))
    found: dict[str, Figures] = {}
    for task in tasks:
        prefix = f"{task.name}/" if len(tasks) > 1 else ""
        for name, figures in _OF_KIND.get(task.kind, _none)(task, limit).items():
            named = {f"{prefix}{metric}": value for metric, value in figures.items()}
            found.setdefault(name, {}).update(named)
    return found


def measured_before(results: str, split: str, models: tuple[str, ...]) -> dict[str, Figures]:
    """Mean over seeds of every figure of models that stand in another result file.

    Raises:
      DataError: a model has no rows there: without it a weaker one would pass for the strongest.
    """
    rows = [row for row in read_results(results_path(results)) if row["split"] == split]
    found: dict[str, Figures] = {}
    for model in models:
        values: dict[str, list[float]] = {}
        for row in rows:
            if row["model"] == model:
                values.setdefault(row["metric"], []).append(row["value"])
        if not values:
            raise DataError(
                f"{results}.json has no rows of {model!r} ({split}): see benchmarks/baselines"
            )
        found[model] = {metric: statistics.fmean(of) for metric, of in values.items()}
    return found


def _none(task: TaskInfo, limit: int) -> dict[str, Figures]:
    del task, limit
    return {}


def _rows(task: TaskInfo, part: str, limit: int = 0) -> list[dict[str, Any]]:
    return list(prepared_rows.read_rows(task.prepared(), task.view, part))[: limit or None]


def _texts(task: TaskInfo, limit: int) -> dict[str, Figures]:
    rows = _rows(task, "test", limit)
    texts = neighbours.nearest_texts(_rows(task, "train"), rows)
    return {NEAREST: metrics_of_texts(prepared_rows.TaskPart(task, "test"), rows, texts)}


def _recommendations(task: TaskInfo, limit: int) -> dict[str, Figures]:
    rows, catalogue = _rows(task, "test", limit), task.prepared().catalogue()
    scores = neighbours.neighbour_scores(_rows(task, "train"), rows, len(catalogue.items))
    targets = np.array([row["item_indices"][0] for row in rows])
    named = np.zeros(scores.shape, bool)
    for place, row in enumerate(rows):
        named[place, np.asarray(row["seen_indices"], int)] = True
    # As in `jobs.dialogue_items`: a row whose item was named before has no part in `new/...`.
    named[np.arange(len(rows)), targets] = False
    top = np.argsort(-scores, axis=1, kind="stable")[:, : max(DEFAULT_KS)]
    predictions = RecommendationPredictions(
        rows=rows,
        top_items=top,
        scores=np.take_along_axis(scores, top, axis=1).astype(np.float32),
        ranks=ranking.ranks_by_score(scores, targets),
        new_ranks=ranking.ranks_by_score(scores, targets, named),
    )
    recommended = target_items(_rows(task, "train"))
    counts = np.bincount(recommended, minlength=len(catalogue.items))
    figures = recommendation_metrics(predictions, counts, DEFAULT_KS)
    popular = "popularity/"
    own = {name: value for name, value in figures.items() if not name.startswith(popular)}
    rest = {n.removeprefix(popular): v for n, v in figures.items() if n.startswith(popular)}
    return {f"{neighbours.NUM_NEIGHBOURS} nearest dialogues": own, "popularity": rest}


def _closed_forms(task: TaskInfo, limit: int) -> dict[str, Figures]:
    prepared = task.prepared()
    counts = prepared.manifest.counts
    train = np.zeros((counts["users"], counts["items"]), np.float32)
    history = train.copy()
    for part, matrices in (("train", (train, history)), ("validation", (history,))):
        for row in prepared_rows.read_rows(
            prepared, "next_items", part, ("user_index", "item_indices")
        ):
            for matrix in matrices:
                matrix[row["user_index"], row["item_indices"]] = 1

    def figures(score: Callable[..., np.ndarray], part: str, known: np.ndarray) -> Figures:
        rows = _rows(task, part, limit)
        users = np.array([row["user_index"] for row in rows])
        wanted = np.full((len(rows), max(len(row["item_indices"]) for row in rows)), -1)
        seen = known[users] > 0
        for place, row in enumerate(rows):
            wanted[place, : len(row["item_indices"])] = row["item_indices"]
            seen[place, row["item_indices"]] = False
        ranks = ranking.ranks_by_score(score(train, known[users]), wanted, seen)
        return ranking.ranking_metrics(ranks, DEFAULT_KS)

    # Ours chooses by validation rows, too.
    best = max(
        (functools.partial(retrieval.ease, penalty=penalty) for penalty in EASE_PENALTIES),
        key=lambda score: figures(score, "validation", train)["ndcg@10"],
    )
    scores = {name: score for name, (score, _) in retrieval.CLOSED_FORM.items()} | {"EASE": best}
    return {name: figures(score, "test", history) for name, score in scores.items()}


_OF_KIND: Mapping[str, Callable[[TaskInfo, int], dict[str, Figures]]] = {
    "generation": _texts,
    "item_recommendation": _recommendations,
    "retrieval": _closed_forms,
}
