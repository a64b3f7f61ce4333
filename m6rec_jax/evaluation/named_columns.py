"""Predictions as columns of a file, with the ids and names that people know things by."""

from __future__ import annotations

import numpy as np

from m6rec_jax.evaluation.predictions import (
    ClassificationPredictions,
    GenerationPredictions,
    LanguagePredictions,
    Predictions,
    RecommendationPredictions,
    RetrievalPredictions,
)
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.registration import TaskInfo


def named_columns(task: TaskInfo, split: str, predictions: Predictions) -> dict[str, np.ndarray]:
    """Columns of predictions, with the users' and items' own ids in front."""
    columns = predictions.columns()
    if isinstance(predictions, LanguagePredictions | GenerationPredictions):
        return columns
    prepared = task.prepared()
    if isinstance(predictions, RecommendationPredictions):
        titles = np.array([*prepared.catalogue().texts, ""], object)
        return columns | {"top_titles": titles[predictions.top_items]}
    if isinstance(predictions, ClassificationPredictions):
        rows = prepared_rows.read_rows(prepared, task.view, split, ("text_index", "text_id"))
        ids = {row["text_index"]: row["text_id"] for row in rows}
        names = prepared.manifest["corpus_spec"]["classes"]
        # A head may have more classes than the corpus.
        spare = range(len(names), predictions.probabilities.shape[1])
        classes = np.array([*names, *(f"class {number}" for number in spare)], object)
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
