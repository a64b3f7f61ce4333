"""Writes what inference needs beside a checkpoint, for tasks registered with seqio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

    Candidates are cut in use as in training: their length is the one that gin sets for the rows of
    the task, such as `scoring_rows.candidate_length`.

    Args:
      model_dir, mixture_or_task_name: of the training run.
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
                **_sampling_rates(task),
                kind=task.kind,
                max_events=_max_events(task),
                named_items=_named_items(task),
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


def _sampling_rates(task: TaskInfo) -> dict[str, Any]:
    """Shares of the negatives that a scoring task's data hold; none for logged impressions."""
    found = task.prepared().manifest["views"].get(task.view, {}).get("negatives", {})
    return {name: rate for name, rate in found.items() if name.endswith("sampling_rate")}


def _named_items(task: TaskInfo) -> int:
    """Of how many named items the dialogues of a task say what is known."""
    manifest = task.prepared().manifest
    options = manifest["options"] if "dialogue_spec" in manifest else {}
    return int(options["named_items"]) if options.get("attributes") else 0


def _max_events(task: TaskInfo) -> int | None:
    """Most behaviours of a history, or turns of a dialogue, that a task is trained on."""
    manifest = task.prepared().manifest
    if "dialogue_spec" in manifest:
        found: int | None = manifest["options"]["max_turns"]
    else:
        found = manifest["views"].get(task.view, {}).get("grouping", {}).get("max_events")
    return found
