"""What evaluation looks up about a registered task: vocabulary, sampling, names in its tables."""

from __future__ import annotations

import numpy as np

from m6rec_jax.evaluation.predictions import (
    ClassificationPredictions,
    LanguagePredictions,
    Predictions,
    RetrievalPredictions,
)
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.batches import find_provider
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.text.vocabulary import Vocabulary


def named_columns(task: TaskInfo, split: str, predictions: Predictions) -> dict[str, np.ndarray]:
    """Columns of predictions, with the users' and items' own ids in front."""
    columns = predictions.columns()
    if isinstance(predictions, LanguagePredictions):
        return columns
    prepared = task.prepared()
    if isinstance(predictions, ClassificationPredictions):
        rows = prepared_rows.read_rows(prepared, task.view, split, ("text_index", "text_id"))
        ids = {row["text_index"]: row["text_id"] for row in rows}
        classes = np.array(prepared.manifest["corpus_spec"]["classes"], object)
        named_classes = {
            "text_id": np.array([ids[int(text)] for text in predictions.texts], object),
            "class": classes[predictions.labels],
            "predicted_class": classes[columns["predicted"]],
        }
        return named_classes | columns
    users = prepared_rows.user_names(prepared, task.view, split)
    items = np.array([item.id for item in prepared.catalogue().items] + [""], object)
    named: dict[str, np.ndarray] = {
        "user_id": np.array([users[int(user)] for user in predictions.users], object)
    }
    if isinstance(predictions, RetrievalPredictions):
        named["target_item_ids"] = items[predictions.targets]  # -1 is the empty id at the end
        named["top_item_ids"] = items[predictions.top_items]
    else:
        named["item_id"] = items[predictions.items]
    return named | columns


def task_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a registered task or mixture."""
    features = find_provider(name).output_features
    vocabulary: Vocabulary = features["encoder_input_tokens"].vocabulary.text
    return vocabulary


def sampling_rate(task: TaskInfo) -> float:
    """Share of the negatives that a scoring task's data hold; 1 for logged impressions."""
    view = task.prepared().manifest["views"].get(task.view, {})
    return float(view.get("negatives", {}).get("sampling_rate", 1.0))
