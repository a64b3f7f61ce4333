"""What `t5x.infer` writes: JSON lines with the columns of `m6rec infer`, users and items by name.

infer.write_fn = @write_predictions
write_predictions.split = %SPLIT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from m6rec_jax.engine.scoring import chosen_classes
from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation import tasks
from m6rec_jax.evaluation.named_columns import named_columns
from m6rec_jax.evaluation.predictions import json_lines
from m6rec_jax.evaluation.task_facts import task_vocabulary
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.registration import TaskInfo, task_info

Columns = dict[str, np.ndarray]


@gin.configurable
def write_predictions(
    path: str,
    inferences: tuple[Sequence[Any], Mapping[str, Any]],
    task_ds: tf.data.Dataset,
    mode: str,
    vocabulary: Any,
    *,
    split: str,
) -> None:
    """Writes one chunk of rows.

    In mode 'score' a line is a candidate (scoring, zero-shot, retrieval: `similarity` of the row's
    own items), a text (classification) or a row (language). In the modes that predict it is a row:
    `source`, `target` and the `prediction`.

    Args:
      path: `FOLDER/<task>-<mode>...`, as t5x names it.
      inferences: of the rows in order: predictions, and scores by name.
      task_ds: the rows.
      mode: t5x's.
      vocabulary: unused; it is the task's.
      split: that the rows are of.
    """
    del vocabulary
    name, found, _ = Path(path).name.partition(f"-{mode}.")
    if not found:
        raise ConfigError(f"'{path}' does not begin with a task's name and '-{mode}.'")
    columns = (
        _scores(task_info(name), split, inferences[1])
        if mode == "score"
        else _texts(name, inferences[0], task_ds)
    )
    with tf.io.gfile.GFile(path, "w") as file:
        for line in json_lines(columns):
            file.write(line)


def _scores(task: TaskInfo, split: str, values: Mapping[str, Any]) -> Columns:
    found = {name: np.asarray(rows) for name, rows in values.items()}
    if task.kind == "retrieval":
        return _similarities(task, split, found)
    if task.kind == "scoring":
        probabilities = np.exp(found["log_probabilities"].astype(np.float64))
        chosen = chosen_classes(task.positive_classes, probabilities.shape[-1])
        found["probability"] = probabilities @ chosen
        predicted: Any = tasks.scoring_predictions(found, task.positive_classes)
    elif task.kind == "classification":
        predicted = tasks.classification_predictions(found)
    elif task.kind == "likelihood":
        predicted = tasks.likelihood_predictions(found)
    elif task.kind == "language":
        predicted = tasks.language_predictions(found)
    else:
        raise ConfigError(
            f"task '{task.name}' ({task.kind}) has no scores in t5x: set MODE = 'predict' for its "
            "texts, or use `m6rec eval`"
        )
    return named_columns(task, split, predicted)


def _similarities(task: TaskInfo, split: str, found: Columns) -> Columns:
    rows, places = np.nonzero(found["decoder_item_ids"] >= 0)
    prepared = task.prepared()
    users = prepared_rows.user_names(prepared, task.view, split)
    items = np.array([item.id for item in prepared.catalogue().items], object)
    return {
        "user_id": np.array([users[int(user)] for user in found["user_ids"][rows, 0]], object),
        "item_id": items[found["decoder_item_ids"][rows, places]],
        "similarity": found["similarity"][rows, places],
    }


def _texts(name: str, predictions: Sequence[Any], task_ds: tf.data.Dataset) -> Columns:
    text = task_vocabulary(name)
    rows = list(task_ds.as_numpy_iterator())

    def column(ids: Sequence[Any]) -> np.ndarray:
        return np.array([text.decode([int(i) for i in row]) for row in ids], object)

    return {
        "source": column([row["encoder_input_tokens"] for row in rows]),
        "target": column([row["decoder_target_tokens"] for row in rows]),
        "prediction": column(predictions),
    }
