"""`m6rec prompts add`: tasks' prompts out of a training run, or another bank, into a bank."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from m6rec_jax.bank.folder import (
    DATASET_FILE,
    MANIFEST_FILE,
    TENSORS_FOLDER,
    BankFolder,
    TaskPrompts,
    read_prompt_manifest,
    read_prompts,
)
from m6rec_jax.bank.manifest import PromptManifest, dataset_fingerprint, method_of
from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint, fingerprint
from m6rec_jax.checkpoints.location import (
    CHECKPOINTS_FOLDER,
    MANIFEST_ITEM,
    locate,
    read_manifest,
)
from m6rec_jax.checkpoints.manifest import Manifest, tensor_specs, warn_of_a_better_step
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.loaded_model import InferenceSettings
from m6rec_jax.engine.model_folder import (
    RestoredModel,
    calibrated,
    read_dataset_specs,
    read_settings,
    restore_model,
)
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.jobs.job import job_of
from m6rec_jax.model.config import PromptConfig
from m6rec_jax.model.layout import take_task

METRICS_FILE, EVALUATION_FOLDER, VALIDATION = "metrics.jsonl", "evaluation", "validation/"
logger = logging.getLogger(__name__)


def add_prompts(
    bank: str | Path,
    source: str | Path,
    *,
    tasks: Sequence[str] = (),
    name: str | None = None,
    step: int | None = None,
) -> list[Path]:
    """Adds tasks to a bank, which is made when missing: all that were asked for, or none.

    Args:
      bank: its folder.
      source: MODEL_DIR of a training run, or one task's folder of another bank.
      tasks: of the run, by their seqio names; empty: all.
      name: another name in the bank, for one task.
      step: checkpoint of the run; None: the newest.

    Returns:
      The tasks' folders in the bank.

    Raises:
      ConfigError: arguments that do not fit each other, a name that is taken, a run without
        tasks, or a bank that is none (`BankFolder`).
      CheckpointError: truncated or damaged files; prompts of another backbone or vocabulary than
        the bank's. The bank is then as it was, and so it is after Ctrl-C.
      DataError: another process is changing the bank.
    """
    folder = BankFolder(bank)
    if (Path(source) / MANIFEST_FILE).exists():
        if tasks or step is not None:
            raise ConfigError(
                f"{source} is a task's folder of a bank, which has no other tasks or steps: leave "
                "out --task and --step"
            )
        # A copied or linked folder is called what its owner called it.
        folder_name = Path(source).absolute().name
        if folder_name in ("", ".."):
            folder_name = Path(source).resolve().name
        found = [_named(read_prompts(source), folder_name)]
    else:
        _refuse_bank(Path(source))
        found = export_prompts(source, tasks, step=step)
    if name is not None:
        if len(found) != 1:
            raise ConfigError(
                f"--name {name} is for one task, but {source} has {len(found)}: "
                f"{', '.join(p.manifest.task for p in found)}; choose one by --task"
            )
        found = [_named(found[0], name)]
    return folder.add_all(found)


def _refuse_bank(source: Path) -> None:
    """What lies in a bank is no run: say so, rather than that it has no checkpoints.

    Raises:
      CheckpointError: a task's folder that has lost its manifest.
      ConfigError: a whole bank.
    """
    if (source / CHECKPOINTS_FOLDER).exists() or (source / MANIFEST_ITEM).exists():
        return
    if (source / TENSORS_FOLDER).exists() or (source / DATASET_FILE).exists():
        read_prompt_manifest(source)
    names = sorted(path.parent.name for path in source.glob(f"*/{MANIFEST_FILE}"))
    if names:
        raise ConfigError(
            f"{source} is a bank: name the folder of one of its tasks, "
            + " or ".join(str(source / name) for name in names)
        )


def _named(prompts: TaskPrompts, name: str) -> TaskPrompts:
    return dataclasses.replace(prompts, manifest=dataclasses.replace(prompts.manifest, task=name))


def export_prompts(
    model_dir: str | Path, tasks: Sequence[str] = (), *, step: int | None = None
) -> list[TaskPrompts]:
    """Prompts of a run's tasks, each by itself.

    Of what the run's bank holds for a task only that is taken which its kind trains: a retrieval
    task has no classes, a scoring task no projections.

    Args:
      model_dir: MODEL_DIR of a training run; may be a bucket address.
      tasks: names of seqio tasks; empty: all that the run trained.
      step: which checkpoint; None: the newest. Where the run followed a metric by which another
        step was best, the log says so.

    Returns:
      In the order asked for. The name in a manifest is the seqio task's.

    Raises:
      CheckpointError: no checkpoint, or a damaged one; it does not say which vocabulary it has.
      ConfigError: the run has no such task, or the task nothing of its own.
    """
    location = locate(model_dir, step)
    manifest = read_manifest(location)
    if manifest.vocabulary_fingerprint is None:
        raise CheckpointError(
            f"{location.folder} does not say which vocabulary it was trained with, so nobody "
            "knows where its prompts fit"
        )
    if step is None:
        warn_of_a_better_step(location.step, manifest)
    if not (epath.Path(model_dir) / CHECKPOINTS_FOLDER).exists():
        raise ConfigError(
            f"{model_dir} lies in a run's folder: name MODEL_DIR itself, and a step by --step"
        )
    settings = calibrated(read_settings(model_dir), model_dir, location.step)
    names = list(dict.fromkeys(tasks)) or sorted(settings.tasks)
    if not names:
        raise ConfigError(
            f"{model_dir} was trained on no task (such as a converted checkpoint), so it has no "
            "prompts to take"
        )
    for name in names:
        if name not in settings.tasks:
            raise ConfigError(
                f"{model_dir} was not trained on '{name}'; its tasks: "
                f"{', '.join(sorted(settings.tasks)) or 'none'}"
            )
    restored = restore_model(model_dir, step=location.step)
    params = restored.variables["params"]
    backbone = {
        "backbone_fingerprint": backbone_fingerprint(params),
        "backbone_size": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
    }
    return [
        _task_prompts(name, settings, manifest, restored, backbone, model_dir) for name in names
    ]


def _task_prompts(
    name: str,
    settings: InferenceSettings,
    manifest: Manifest,
    restored: RestoredModel,
    backbone: Mapping[str, Any],
    model_dir: str | Path,
) -> TaskPrompts:
    config, task = restored.model.config, settings.tasks[name]
    own = _own_prompts(config.prompts.of_task(task.task_id), job_of(task.kind).needs)
    tensors = take_task(flatten(restored.variables.get("prompts", {})), config, task.task_id, own)
    if not tensors:
        raise ConfigError(
            f"'{name}' has no prompts in {model_dir}: nothing beside the backbone was made for it "
            "(PromptConfig)"
        )
    assert manifest.vocabulary_fingerprint is not None
    spec = read_dataset_specs(model_dir).get(task.prepared)
    described = PromptManifest(
        task=name,
        method=method_of(own, manifest.trainable),
        date=manifest.date,
        vocabulary_fingerprint=manifest.vocabulary_fingerprint,
        prompts_fingerprint=fingerprint(tensors),
        model_config=config.replace(prompts=own),
        settings=dataclasses.replace(
            task,
            task_id=0,
            num_options=own.num_options,
            retrieval_dim=own.retrieval_dim,
            source_length=settings.source_length,
            target_length=settings.target_length,
            candidate_length=min(
                filter(None, (task.candidate_length, settings.candidate_length)), default=None
            ),
        ),
        metrics=_metrics(epath.Path(model_dir), name, restored.step, len(settings.tasks)),
        source={"run": str(model_dir), "task": name, "step": restored.step},
        tensors=tensor_specs(tensors),
        dataset_fingerprint=dataset_fingerprint(spec),
        **backbone,
    )
    return TaskPrompts(described, tensors, spec)


def _own_prompts(prompts: PromptConfig, needs: str) -> PromptConfig:
    """What a task trains whose job needs this part of the model."""
    has_classes = prompts.head != "none" and needs == "classes"
    return dataclasses.replace(
        prompts,
        head=prompts.head if has_classes else "none",
        num_options=prompts.num_options if has_classes else 0,
        retrieval_dim=prompts.retrieval_dim if needs == "retrieval projections" else 0,
    )


def _metrics(folder: epath.Path, task: str, step: int, num_tasks: int) -> dict[str, float]:
    """Metrics of a task at a step: of validation, and of `m6rec eval` where it has been run."""
    found: dict[str, float] = {}
    for line in _lines(folder / METRICS_FILE):
        if line.get("step") == step:
            metrics = {n.removeprefix(VALIDATION): v for n, v in line.items() if VALIDATION in n}
            own = _of_task(metrics, task) or (metrics if num_tasks == 1 else {})
            found |= {f"{VALIDATION}{name}": value for name, value in own.items()}
    evaluations = folder / EVALUATION_FOLDER
    for path in sorted(evaluations.iterdir()) if evaluations.is_dir() else ():
        if not path.name.endswith(f"-{step}.json"):
            continue
        # <task or mixture>-<split>-<step>.json
        name, _, split = path.name.rpartition("-")[0].rpartition("-")
        try:
            evaluated: Any = json.loads(path.read_text())
        except ValueError:
            evaluated = None
        if not isinstance(evaluated, dict):
            logger.warning("%s is no JSON object; its metrics are left out", path)
            continue
        own = evaluated if name == task else _of_task(evaluated, task)
        found |= {f"{split}/{metric}": value for metric, value in own.items()}
    # Infinity and NaN are written as null, and are no JSON.
    return {
        metric: float(value)
        for metric, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _of_task(metrics: Mapping[str, float], task: str) -> dict[str, float]:
    """Metrics of one task among those of a mixture, which are called `<task>/<metric>`."""
    prefix = f"{task}/"
    return {n.removeprefix(prefix): v for n, v in metrics.items() if n.startswith(prefix)}


def _lines(path: epath.Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines; a line that a killed process left half written is none."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            logger.warning("%s: left out an unreadable line", path)
    return found
