"""`m6rec prompts add`: tasks' prompts out of a training run, or another bank, into a bank."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
from etils import epath

from m6rec_jax.bank.folder import (
    SUFFIX,
    BankFolder,
    PromptManifest,
    TaskPrompts,
    method_of,
    read_prompts,
)
from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint, fingerprint
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.task_settings import task_settings
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.job import job_of
from m6rec_jax.model.config import PromptConfig
from m6rec_jax.model.layout import take_task

METRICS_FILE, VALIDATION = "metrics.jsonl", "validation/"


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
      source: MODEL_DIR of a training run, or one task's file of another bank.
      tasks: of the run, by their seqio names; empty: all.
      name: another name in the bank, for one task.
      step: checkpoint of the run; None: the newest.

    Returns:
      The tasks' files in the bank.

    Raises:
      ConfigError: arguments that do not fit each other, a name that is taken, a run without
        tasks, or a bank that is none (`BankFolder`).
      CheckpointError: truncated or damaged files; prompts of another backbone or vocabulary than
        the bank's. The bank is then as it was, and so it is after Ctrl-C.
      DataError: another process is changing the bank.
    """
    folder = BankFolder(bank)
    if Path(source).suffix == SUFFIX:
        if tasks or step is not None:
            raise ConfigError(
                f"{source} is a task's file of a bank, which has no other tasks or steps: leave "
                "out --task and --step"
            )
        prompts = [read_prompts(source)]
    else:
        prompts = export_prompts(source, tasks, step=step)
    if name is not None:
        if len(prompts) != 1:
            raise ConfigError(
                f"--name {name} is for one task, but {source} has {len(prompts)}: "
                f"{', '.join(p.manifest.task for p in prompts)}; choose one by --task"
            )
        prompts = [prompts[0].named(name)]
    return folder.add(*prompts)


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
      CheckpointError: no checkpoint, or a damaged one.
      ConfigError: the run has no such task, or the task nothing of its own.
    """
    manifest, model = open_checkpoint(model_dir, step).manifest, load_model(model_dir, step=step)
    names = list(dict.fromkeys(tasks)) or sorted(model.tasks)
    if not names:
        raise ConfigError(f"{model_dir} was trained on no task, so it has no prompts to take")
    params = model.variables["params"]
    backbone = {
        "backbone_fingerprint": backbone_fingerprint(params),
        "backbone_size": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
    }
    config, stacked = model.model.config, flatten(model.variables.get("prompts", {}))
    exported = []
    for name in names:
        task = task_settings(model.tasks, name)
        prompts = _own_prompts(config.prompts.of_task(task.task_id), job_of(task.kind).needs)
        tensors = take_task(stacked, config, task.task_id, prompts)
        if not tensors:
            raise ConfigError(f"'{name}' has no prompts in {model_dir} (PromptConfig)")
        described = PromptManifest(
            task=name,
            method=method_of(prompts, manifest.trainable),
            date=manifest.date,
            vocabulary_fingerprint=model.vocabulary.fingerprint,
            prompts_fingerprint=fingerprint(tensors),
            model_config=config.replace(prompts=prompts),
            settings=dataclasses.replace(
                task,
                task_id=0,
                num_options=prompts.num_options,
                retrieval_dim=prompts.retrieval_dim,
                source_length=model.settings.source_length,
                target_length=model.settings.target_length,
            ),
            metrics=_metrics(epath.Path(model_dir), name, model.step, len(model.tasks)),
            source={"run": str(model_dir), "task": name, "step": model.step},
            size=sum(tensor.size for tensor in tensors.values()),
            dataset_spec=model.dataset_spec(name),
            **backbone,
        )
        exported.append(TaskPrompts(described, tensors))
    return exported


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
    """Metrics of a task that were validated at a step; of a mixture they begin with its name."""
    path, values = folder / METRICS_FILE, dict[str, float]()
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed
            line = json.loads(text)
            values |= line if line["step"] == step else {}
    metrics = {
        name: float(value)
        for name, value in values.items()
        if name.startswith(VALIDATION) and value is not None and math.isfinite(value)
    }
    prefix = f"{VALIDATION}{task}/"
    of_task = {n.replace(prefix, VALIDATION): v for n, v in metrics.items() if n.startswith(prefix)}
    return of_task or (metrics if num_tasks == 1 else {})
