"""Writes what inference needs beside a checkpoint, for tasks registered with seqio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.evaluation.evaluator import sampling_rate, task_vocabulary
from m6rec_jax.inference.bundle import InferenceSettings, TaskSettings, save_assets
from m6rec_jax.pipeline.preprocessors import prompt_task_ids
from m6rec_jax.pipeline.registration import evaluated_tasks


def save_task_assets(
    model_dir: str | Path,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    candidate_length: int | None = None,
) -> InferenceSettings:
    """Writes `MODEL_DIR/inference`, so that `inference.bundle.load_model(MODEL_DIR)` works.

    Args:
      model_dir: of the training run.
      mixture_or_task_name: that the model is trained on.
      task_feature_lengths: `{"inputs": S, "targets": T}` of training.
      candidate_length: most tokens of one candidate; None: no other limit than T.

    Returns:
      The settings written.

    Raises:
      ConfigError: the task is none of `register_recommendation_tasks`.
      DataError: its data are not prepared.
    """
    tasks = evaluated_tasks(mixture_or_task_name)
    ids = prompt_task_ids()
    settings = InferenceSettings(
        source_length=task_feature_lengths["inputs"],
        target_length=task_feature_lengths["targets"],
        tasks={
            task.name: TaskSettings(
                ids.get(task.name, 0), task.positive_classes, sampling_rate(task)
            )
            for task in tasks
        },
        candidate_length=candidate_length,
    )
    spec = tasks[0].prepared().manifest["dataset_spec"]
    save_assets(model_dir, task_vocabulary(mixture_or_task_name), settings, spec)
    return settings
