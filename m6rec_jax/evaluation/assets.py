"""Writes what inference needs beside a checkpoint, for tasks registered with seqio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.store.manifest import Manifest
from m6rec_jax.engine.model_folder import InferenceSettings, save_assets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.pipeline.registration import evaluated_tasks
from m6rec_jax.pipeline.row_layout import prompt_row
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
      ConfigError: there is no such task.
      DataError: its data are not prepared.
    """
    found = evaluated_tasks(mixture_or_task_name)
    tasks = [task for task in found if task.dataset]
    prepared = {task.name: task.prepared() for task in tasks}
    manifest_of = {name: found.manifest for name, found in prepared.items()}
    settings = InferenceSettings(
        source_length=task_feature_lengths["inputs"],
        target_length=task_feature_lengths["targets"],
        tasks={
            task.name: TaskSettings(
                task_id=prompt_row(task.name),
                positive_classes=task.positive_classes,
                **manifest_of[task.name].view(task.view).negatives,
                kind=task.kind,
                max_events=_max_events(manifest_of[task.name], task.view),
                named_items=_named_items(manifest_of[task.name]),
                candidate_length=task.candidate_length(),
                writing=task.view if task.kind == "generation" else "",
                prepared=prepared[task.name].folder.name,
                view=task.view,
            )
            for task in tasks
        }
        | {
            task.name: TaskSettings(
                prompt_row(task.name),
                kind="generation" if task.kind == "text_to_text" else task.kind,
            )
            for task in found
            if not task.dataset
        },
    )
    # Texts have no template.
    specs = {
        found.folder.name: found.dataset_spec for found in prepared.values() if found.has_template
    }
    save_assets(model_dir, task_vocabulary(mixture_or_task_name), settings, specs)
    return settings


def _named_items(manifest: Manifest) -> int:
    """Of how many named items the dialogues of a task say what is known."""
    options = manifest.options if manifest.dialogue_spec else {}
    return int(options["named_items"]) if options.get("attributes") else 0


def _max_events(manifest: Manifest, view: str) -> int | None:
    """Most behaviours of a history, or turns of a dialogue, that a task is trained on."""
    if manifest.dialogue_spec:
        return int(manifest.options["max_turns"])
    return manifest.view(view).max_events
