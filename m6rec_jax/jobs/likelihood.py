"""Likelihood: zero-shot scores, how plausible a sentence about a candidate is (paper section 2).

Metrics: `auc` and `user_averaged_auc`, beside those of baselines that need no model.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from m6rec_jax.engine.likelihood import mean_target_log_probabilities
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    Features,
    Found,
    Job,
    TaskData,
    TaskRows,
    Variables,
    labelled,
    register,
)
from m6rec_jax.jobs.scoring import candidate_names
from m6rec_jax.metrics import classification
from m6rec_jax.metrics.baselines import MeanBaselines
from m6rec_jax.model import M6Rec


@dataclasses.dataclass(frozen=True, slots=True)
class LikelihoodPredictions:
    """One entry per scored candidate.

    Attributes:
      users, items: int64 `[n]`, indices into the users and the items table.
      labels: int64 `[n]`, 0 or 1.
      scores: float64 `[n]`, mean log probability of the tokens that count, in nats.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@register
class LikelihoodJob(Job):
    """The mean log probability of the tokens that count, for each candidate."""

    kind = "likelihood"
    tasks = (TaskRows("zero_shot", "groups", "likelihood_rows"),)
    identity = ("decoder_labels", "decoder_item_ids", "user_ids")
    has_scores = True

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`score` at every decoder position, `[rows, target]`."""
        hidden = model.apply(variables, features).hidden
        return {"score": mean_target_log_probabilities(model, variables, hidden, features)}

    def predict(self, evaluation: Evaluation) -> LikelihoodPredictions:
        """Raises DataError where no candidate has a label."""
        return _predictions(evaluation.outputs())

    def metrics(
        self, evaluation: Evaluation, predictions: LikelihoodPredictions
    ) -> dict[str, float]:
        """See `likelihood_metrics`."""
        fitted = evaluation.once("baselines", lambda: training_baselines(evaluation.data))
        return likelihood_metrics(predictions, fitted)

    def columns(self, data: TaskData, predictions: LikelihoodPredictions) -> Columns:
        """User, item, label and score of each candidate."""
        return candidate_names(data, predictions.users, predictions.items) | {
            "label": predictions.labels,
            "score": predictions.scores,
        }

    def score_columns(self, data: TaskData, found: Found) -> Columns:
        """See `Job`."""
        return self.columns(data, _predictions(found))


def training_baselines(data: TaskData) -> MeanBaselines:
    """Fitted to the training part, popularity without sampled negatives."""
    train, catalogue = data.interactions("train"), data.prepared().catalogue()
    num_users = data.prepared().manifest["counts"]["users"]
    fitted = MeanBaselines.fit(
        train.users, train.items, train.labels, num_users, len(catalogue.items)
    )
    return dataclasses.replace(fitted, item_counts=catalogue.train_counts)


def likelihood_metrics(
    predictions: LikelihoodPredictions, baselines: MeanBaselines, seed: int = 0
) -> dict[str, float]:
    """How well zero-shot scores order candidates, beside what needs no model.

    Args:
      predictions: of candidates.
      baselines: fitted to the training part.
      seed: of chance.

    Returns:
      `auc`, `user_averaged_auc` (where a user has both labels), `num_examples`, `num_users`; and
      the first two of `popularity/...`, `item_mean/...`, `user_and_item_mean/...` and `chance/...`,
      random scores. All baselines but popularity and chance know the training part's labels.

    Raises:
      DataError: all labels are the same.
    """
    users, labels = predictions.users, predictions.labels
    metrics, num_users = _ordering(users, labels, predictions.scores)
    metrics |= {"num_examples": float(len(labels)), "num_users": float(num_users)}
    known = baselines.scoring_metrics(users, predictions.items, labels)
    known["chance"], _ = _ordering(users, labels, np.random.default_rng(seed).random(len(labels)))
    for name, found in known.items():
        metrics |= {f"{name}/{k}": v for k, v in found.items() if k.endswith("auc")}
    return metrics


def _ordering(
    users: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[dict[str, float], int]:
    """AUC, that averaged over users, and how many of those have both labels."""
    metrics = {"auc": classification.auc(labels, scores)}
    per_user = classification.per_user_auc(users, labels, scores).values
    if per_user.size:
        metrics["user_averaged_auc"] = float(per_user.mean())
    return metrics, int(per_user.size)


def _predictions(found: Found) -> LikelihoodPredictions:
    rows, positions = labelled(found, "zero-shot")
    return LikelihoodPredictions(
        users=found["user_ids"][rows, 0].astype(np.int64),
        items=found["decoder_item_ids"][rows, positions].astype(np.int64),
        labels=found["decoder_labels"][rows, positions].astype(np.int64),
        scores=found["score"][rows, positions].astype(np.float64),
    )
