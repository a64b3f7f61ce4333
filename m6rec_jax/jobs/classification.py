"""Classification: the class of a text.

Metrics: `accuracy`, `macro_f1`, `auc` and the others of `multiclass_metrics`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from m6rec_jax.engine.candidates.scoring import class_log_probabilities
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    Features,
    Found,
    Job,
    TaskData,
    Variables,
    labelled,
    register,
)
from m6rec_jax.metrics import classification
from m6rec_jax.model import M6Rec


@dataclasses.dataclass(frozen=True, slots=True)
class ClassificationPredictions:
    """One entry per text.

    Attributes:
      texts: int64 `[n]`, indices into the table of texts.
      labels: int64 `[n]`, classes.
      probabilities: float64 `[n, classes]`.
    """

    texts: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


class ClassesJob(Job):
    """Jobs that read classes off the head."""

    needs = "classes"

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`log_probabilities` at every decoder position, `[rows, target, classes]`."""
        return {"log_probabilities": class_log_probabilities(model, variables, features)}


@register
class ClassificationJob(ClassesJob):
    """The probability of each class for each text."""

    kind = "classification"
    identity = ("decoder_labels", "decoder_item_ids")
    has_scores = True

    def predictions(self, data: TaskData, found: Found) -> ClassificationPredictions:
        """Raises DataError where no text has a label."""
        rows, positions = labelled(found, "classification")
        return ClassificationPredictions(
            texts=found["decoder_item_ids"][rows, positions].astype(np.int64),
            labels=found["decoder_labels"][rows, positions].astype(np.int64),
            probabilities=np.exp(found["log_probabilities"][rows, positions].astype(np.float64)),
        )

    def metrics(
        self, evaluation: Evaluation, predictions: ClassificationPredictions
    ) -> dict[str, float]:
        """Those of `multiclass_metrics`, and `num_examples`; raises DataError as those do."""
        metrics = classification.multiclass_metrics(predictions.labels, predictions.probabilities)
        return metrics | {"num_examples": float(len(predictions.labels))}

    def baselines(
        self, evaluation: Evaluation, predictions: ClassificationPredictions
    ) -> dict[str, dict[str, float]]:
        """The shares of the classes in the training part, for every text."""
        labels = np.array([row["label"] for row in evaluation.data.rows(("label",), part="train")])
        shares = np.bincount(labels, minlength=predictions.probabilities.shape[1]) / len(labels)
        constant = np.broadcast_to(shares, predictions.probabilities.shape)
        return {"class_shares": classification.multiclass_metrics(predictions.labels, constant)}

    def columns(self, data: TaskData, predictions: ClassificationPredictions) -> Columns:
        """Text, class, predicted class and all probabilities."""
        ids = {row["text_index"]: row["text_id"] for row in data.rows(("text_index", "text_id"))}
        names = (data.prepared().manifest.corpus_spec or {})["classes"]
        # A head may have more classes than the corpus.
        spare = range(len(names), predictions.probabilities.shape[1])
        classes = np.array([*names, *(f"class {number}" for number in spare)], object)
        predicted = predictions.probabilities.argmax(axis=1)
        return {
            "text_id": np.array([ids[int(text)] for text in predictions.texts], object),
            "class": classes[predictions.labels],
            "predicted_class": classes[predicted],
            "text_index": predictions.texts,
            "label": predictions.labels,
            "predicted": predicted,
            "probabilities": predictions.probabilities,
        }
