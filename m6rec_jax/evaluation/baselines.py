"""What any model must beat: popularity and smoothed means, fitted to the training part.

They need no model and no text; reports and results tables show them beside the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from m6rec_jax.errors import DataError
from m6rec_jax.evaluation.predictions import (
    ClassificationPredictions,
    LikelihoodPredictions,
    Predictions,
    RetrievalPredictions,
    ScoringPredictions,
)
from m6rec_jax.metrics import classification, multiclass, ranking
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.registration import TaskInfo

SMOOTHING = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class MeanBaselines:
    """Popularity of items, and mean labels of users and items. Make it with `fit`.

    Attributes:
      global_mean: share of label 1 among all events.
      item_counts: int64 `[items]`, events of each item.
      item_means, user_means: float64 `[items]`, `[users]`, mean labels, drawn towards the global
        mean as `smoothing` further events of that mean would.
    """

    global_mean: float
    item_counts: np.ndarray
    item_means: np.ndarray
    user_means: np.ndarray

    @classmethod
    def fit(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        labels: np.ndarray,
        num_users: int,
        num_items: int,
        smoothing: float = SMOOTHING,
    ) -> MeanBaselines:
        """Counts the training part.

        Args:
          users, items: int `[n]`, places in the users and items tables.
          labels: int `[n]`, 0 or 1.
          num_users, num_items: of the tables.
          smoothing: how many events of the global mean every user and item starts with.

        Raises:
          DataError: no events, or a place outside its table.
        """
        if not len(labels):
            raise DataError("baselines: the training part is empty")
        for name, places, size in (("user", users, num_users), ("item", items, num_items)):
            if int(places.min()) < 0 or int(places.max()) >= size:
                raise DataError(
                    f"baselines: {name} {int(places.max())} is outside a table of {size}"
                )
        mean = float(labels.mean())

        def means(places: np.ndarray, size: int) -> np.ndarray:
            sums = np.bincount(places, weights=labels, minlength=size)
            counts = np.bincount(places, minlength=size)
            # An unseen place with no smoothing has no mean of its own.
            empty = (counts == 0) & (smoothing == 0)
            total = np.where(empty, 1.0, counts + smoothing)
            return np.where(empty, mean, (sums + smoothing * mean) / total)

        return cls(
            mean,
            np.bincount(items, minlength=num_items),
            means(items, num_items),
            means(users, num_users),
        )

    def popularity(self, items: np.ndarray) -> np.ndarray:
        """How many training events each item `[n]` has: a score, no probability."""
        return self.item_counts[items].astype(np.float64)

    def item_mean(self, items: np.ndarray) -> np.ndarray:
        """Smoothed share of likes of each item `[n]`."""
        return self.item_means[items]

    def user_and_item_mean(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """User's mean plus item's mean less the global one, kept within [0.01, 0.99], `[n]`."""
        return np.clip(
            self.user_means[users] + self.item_means[items] - self.global_mean, 0.01, 0.99
        )

    def scoring_metrics(
        self, users: np.ndarray, items: np.ndarray, labels: np.ndarray
    ) -> dict[str, dict[str, float]]:
        """Figures of every baseline on other events, named as `evaluation.tasks.scoring_metrics`.

        Returns:
          `popularity` (no log loss: it is no probability), `item_mean`, `user_and_item_mean`.

        Raises:
          DataError: all labels are the same.
        """
        scores = {
            "popularity": self.popularity(items),
            "item_mean": self.item_mean(items),
            "user_and_item_mean": self.user_and_item_mean(users, items),
        }
        figures = {}
        for name, score in scores.items():
            figures[name] = {"auc": classification.auc(labels, score)}
            per_user = classification.per_user_auc(users, labels, score).values
            if per_user.size:
                figures[name]["user_averaged_auc"] = float(per_user.mean())
            if name != "popularity":
                figures[name]["log_loss"] = classification.log_loss(labels, score)
        return figures


def popularity_ranks(
    item_counts: np.ndarray, users: np.ndarray, targets: np.ndarray, seen: Mapping[int, np.ndarray]
) -> np.ndarray:
    """Ranks of wanted items when items are ordered by popularity, seen ones left out.

    Args:
      item_counts: training events of each item `[items]`.
      users: int `[n]`. targets: int `[n, m]`, -1 is padding.
      seen: by user, items to leave out; never a wanted one.

    Returns:
      int64 `[n, m]`, for `metrics.ranking`.
    """
    counts = item_counts.astype(np.float64)
    ranks = np.zeros(targets.shape, np.int64)
    step = max(1, 20_000_000 // max(len(counts), 1))
    for start in range(0, len(users), step):
        part = slice(start, start + step)
        hidden = np.zeros((len(users[part]), len(counts)), bool)
        for i, user in enumerate(users[part]):
            hidden[i, seen.get(int(user), [])] = True
            wanted = targets[start + i]
            hidden[i, wanted[wanted >= 0]] = False
        scores = np.broadcast_to(counts, hidden.shape)
        ranks[part] = ranking.ranks_by_score(scores, targets[part], hidden)
    return ranks


def mean_baselines(task: TaskInfo) -> MeanBaselines:
    """Popularity and means of the training part of a task's data.

    Raises:
      DataError: the data are not there, or have no view 'groups'.
    """
    prepared = task.prepared()
    train, catalogue = prepared_rows.interactions(prepared, "train"), prepared.catalogue()
    fitted = MeanBaselines.fit(
        train.users,
        train.items,
        train.labels,
        prepared.manifest["counts"]["users"],
        len(catalogue.items),
    )
    # Sampled negatives are no sign of popularity.
    return dataclasses.replace(fitted, item_counts=catalogue.train_counts)


def popularity_ranks_of(
    task: TaskInfo, split: str, predictions: RetrievalPredictions
) -> np.ndarray:
    """Ranks `[n, m]` of what rows want when popular items come first, as `predictions.ranks`."""
    prepared = task.prepared()
    seen = prepared_rows.seen_items(prepared, split)
    counts = prepared.catalogue().train_counts
    return popularity_ranks(counts, predictions.users, predictions.targets, seen)


def baseline_metrics(
    task: TaskInfo, split: str, predictions: Predictions, ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """What needs no model reaches on the rows of `predictions`: baseline -> metric -> value.

    Scoring and zero-shot scoring have popularity, item mean, and user and item mean; retrieval has
    popularity; classification the shares of the classes in the training part. Other kinds have
    none here.

    Args:
      task, split: what the predictions are of.
      predictions: of the model.
      ks: cut-offs of retrieval.
    """
    if isinstance(predictions, ScoringPredictions | LikelihoodPredictions):
        if "groups" not in task.prepared().manifest["views"]:  # rows for reranking may be alone
            return {}
        known = mean_baselines(task).scoring_metrics(
            predictions.users, predictions.items, predictions.labels
        )
        if isinstance(predictions, LikelihoodPredictions):  # a score is no probability
            for metrics in known.values():
                metrics.pop("log_loss", None)
        return known
    if isinstance(predictions, RetrievalPredictions):
        num_items = len(task.prepared().catalogue().items)
        ranks = popularity_ranks_of(task, split, predictions)
        shown = tuple(k for k in ks if k <= num_items)
        return {"popularity": ranking.ranking_metrics(ranks, shown)}
    if isinstance(predictions, ClassificationPredictions):
        rows = prepared_rows.read_rows(task.prepared(), task.view, "train", ("label",))
        labels = np.array([row["label"] for row in rows])
        shares = np.bincount(labels, minlength=predictions.probabilities.shape[1]) / len(labels)
        constant = np.broadcast_to(shares, predictions.probabilities.shape)
        return {"class shares": multiclass.multiclass_metrics(predictions.labels, constant)}
    return {}
