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

from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation.prediction_files import json_lines
from m6rec_jax.jobs.job import Columns
from m6rec_jax.pipeline.prepared_rows import TaskPart
from m6rec_jax.pipeline.registration import TaskInfo, task_info
from m6rec_jax.pipeline.task_rows import task_vocabulary


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
    own items), a text (classification) or a row (language). Otherwise it is a row with `source`,
    `target` and `prediction`.

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
    if not task.job.has_scores:
        raise ConfigError(
            f"task '{task.name}' ({task.kind}) has no scores in t5x: set MODE = 'predict' for its "
            "texts, or use `m6rec eval`"
        )
    found = {name: np.asarray(rows) for name, rows in values.items()}
    return task.job.score_columns(TaskPart(task, split), found)


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
