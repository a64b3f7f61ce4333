"""Writes what inference needs beside a checkpoint, for tasks registered with seqio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.engine.loaded_model import InferenceSettings
from m6rec_jax.engine.model_folder import save_assets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.pipeline.prompt_rows import prompt_row
from m6rec_jax.pipeline.registration import TaskInfo, evaluated_tasks
from m6rec_jax.pipeline.task_rows import task_vocabulary


def save_task_assets(
    model_dir: str | Path,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
) -> InferenceSettings:
    """Writes `MODEL_DIR/inference`, so that `engine.model_folder.load_model(MODEL_DIR)` works.

    How long a candidate may be is what gin sets for the rows of its task, such as
    `scoring_rows.candidate_length`, so that it is cut in use as it was in training.

    Args:
      model_dir: of the training run.
      mixture_or_task_name: that the model is trained on.
      task_feature_lengths: `{"inputs": S, "targets": T}` of training.

    Returns:
      The settings written.

    Raises:
      ConfigError: the task is none of `register_recommendation_tasks` or `register_text_tasks`.
      DataError: its data are not prepared.
    """
    tasks = evaluated_tasks(mixture_or_task_name)
    prepared = {task.name: task.prepared() for task in tasks}
    settings = InferenceSettings(
        source_length=task_feature_lengths["inputs"],
        target_length=task_feature_lengths["targets"],
        tasks={
            task.name: TaskSettings(
                task_id=prompt_row(task.name),
                positive_classes=task.positive_classes,
                sampling_rate=_sampling_rate(task),
                kind=task.kind,
                max_events=_max_events(task),
                candidate_length=task.candidate_length(),
                writing=task.view if task.kind == "generation" else "",
                prepared=prepared[task.name].folder.name,
                view=task.view,
            )
            for task in tasks
        },
    )
    # Texts have no template.
    specs = {
        found.folder.name: found.manifest["dataset_spec"]
        for found in prepared.values()
        if "dataset_spec" in found.manifest
    }
    save_assets(model_dir, task_vocabulary(mixture_or_task_name), settings, specs)
    return settings


def _sampling_rate(task: TaskInfo) -> float:
    """Share of the negatives that a scoring task's data hold; 1 for logged impressions."""
    view = task.prepared().manifest["views"].get(task.view, {})
    return float(view.get("negatives", {}).get("sampling_rate", 1.0))


def _max_events(task: TaskInfo) -> int | None:
    """Behaviours of the histories that a task is trained on, or turns of its dialogues, at most."""
    manifest = task.prepared().manifest
    if "dialogue_spec" in manifest:
        turns: int = manifest["options"]["max_turns"]
        return turns
    view = manifest["views"].get(task.view, {})
    found: int | None = view.get("grouping", {}).get("max_events")
    return found
