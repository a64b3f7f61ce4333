"""`m6rec eval` and `m6rec infer`: metrics and predictions of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import jax
from etils import epath

from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.engine.model_folder import RestoredModel, read_ranking, restore_model
from m6rec_jax.evaluation.evaluator import Evaluator, check_task
from m6rec_jax.evaluation.prediction_files import check_ending, write_predictions
from m6rec_jax.io.atomic import check_output, write_atomically
from m6rec_jax.io.json_text import json_text
from m6rec_jax.jobs.job import Job
from m6rec_jax.metrics.paired import PairedDifference
from m6rec_jax.pipeline.prepared_rows import TaskPart
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.pipeline.run_vocabulary import with_own_vocabulary
from m6rec_jax.pipeline.task_rows import task_vocabulary

logger = logging.getLogger(__name__)


@gin.configurable
@with_own_vocabulary
def evaluate(
    model_dir: str = gin.REQUIRED,
    mixture_or_task_name: str = gin.REQUIRED,
    task_feature_lengths: Mapping[str, int] = gin.REQUIRED,
    *,
    split: str = "test",
    batch_size: int = 32,
    step: int | None = None,
    limit: int | None = None,
    output: str | None = None,
    against: str | None = None,
) -> dict[str, float]:
    """`m6rec eval`: metrics of a checkpoint and, as `<baseline>/<metric>`, of `Job.baselines`.

    Args:
      model_dir: of the run. The model is built as the checkpoint says, not as gin says.
      mixture_or_task_name, task_feature_lengths, batch_size, split: see `Evaluator`.
      limit: of rows; None: `Evaluator.limit`.
      step: which checkpoint; None: the newest.
      output: JSON file for the metrics; None:
        `MODEL_DIR/evaluation/<task>-<split>-<step>.json` (`...-without_towers.json` where
        `Reranking.towers` is off, `...-first<limit>.json` with a limit, `...-sample<rows>.json` of
        a sample).
      against: MODEL_DIR of another run that this one is compared with, example by example: its
        metrics are `against/<metric>`; `gain` is by how much examples are better than the other's,
        `gain_error` its standard error (`PairedDifference`). A sentence about it is logged.

    Raises:
      ConfigError: the output is a folder or its folder cannot be made; raised before any work.
      CheckpointError: no checkpoint, or another vocabulary.
      DataError, ConfigError: as `Evaluator`; or a task's job compares no examples.
    """
    if output is not None:
        _check_output(output)
    evaluator, restored = restored_evaluator(
        model_dir, mixture_or_task_name, task_feature_lengths, split, batch_size, step, limit
    )
    name = _name(mixture_or_task_name, evaluator, restored.step)
    path = epath.Path(output or _folder(model_dir) / "evaluation" / f"{name}.json")
    _check_output(path)
    other = None if against is None else _restored(against, mixture_or_task_name, evaluator)
    metrics: dict[str, float] = {}
    for task in evaluator.tasks:
        if against is not None and type(task.job).example_scores is Job.example_scores:
            task.job.example_scores(None)  # says why, before anything is evaluated
    for task in evaluator.tasks:
        predictions = _predict(evaluator, task, restored, model_dir)
        found = evaluator.metrics(task, predictions)
        if other is not None:
            others = _predict(evaluator, task, other, str(against))
            theirs = evaluator.metrics(task, others)
            found |= {f"against/{name}": value for name, value in theirs.items()}
            scores = task.job.example_scores(predictions)
            gain = PairedDifference.of(
                scores.users, scores.values, task.job.example_scores(others).values
            )
            found |= {"gain": gain.mean, "gain_error": gain.error}
            told = gain.verdict(f"{scores.name} of {task.name}, {split}", model_dir, str(against))
            logger.info("%s", told)
        for baseline, values in evaluator.baselines(task, predictions).items():
            found |= {f"{baseline}/{name}": value for name, value in values.items()}
        prefix = f"{task.name}/" if len(evaluator.tasks) > 1 else ""
        metrics |= {f"{prefix}{name}": value for name, value in found.items()}
    if jax.process_index() == 0:
        write_atomically(path, json_text(metrics, indent=2) + "\n")
    return metrics


@gin.configurable
@with_own_vocabulary
def infer(
    model_dir: str = gin.REQUIRED,
    mixture_or_task_name: str = gin.REQUIRED,
    task_feature_lengths: Mapping[str, int] = gin.REQUIRED,
    *,
    split: str = "test",
    batch_size: int = 32,
    step: int | None = None,
    limit: int | None = None,
    k: int = 50,
    output: str | None = None,
) -> list[epath.Path]:
    """`m6rec infer`: writes predictions of a checkpoint, one file per task.

    The task's job names the columns (`Job.columns`): scoring gives user_id, item_id, label and
    probability per candidate, retrieval user_id and the ids and scores of the k best items per row.

    Args:
      model_dir, mixture_or_task_name, task_feature_lengths, split, batch_size, step, limit: as in
        `evaluate`.
      k: length of the lists.
      output: `.parquet` or `.jsonl` file (with several tasks: the task's name goes before the
        ending), may be a bucket address; None:
        `MODEL_DIR/predictions/<task>-<split>-<step>.parquet`, with endings as in `evaluate`.

    Returns:
      The files that this process has written: all in process 0, none in others.

    Raises:
      ConfigError: the output has another ending or its folder cannot be made; raised before
        anything is loaded.
      CheckpointError, DataError, ConfigError: as `evaluate`.
    """
    if output is not None:
        check_ending(output)
        _check_output(output)
    evaluator, restored = restored_evaluator(
        model_dir, mixture_or_task_name, task_feature_lengths, split, batch_size, step, limit, k
    )
    paths = []
    for task in evaluator.tasks:
        predictions = _predict(evaluator, task, restored, model_dir)
        columns = task.job.columns(TaskPart(task, split), predictions)
        name = _name(task.name, evaluator, restored.step)
        path = _folder(model_dir) / "predictions" / f"{name}.parquet"
        if output is not None:
            path = epath.Path(output)
            if len(evaluator.tasks) > 1:
                path = path.with_name(f"{path.stem}-{task.name}{path.suffix}")
        if jax.process_index() == 0:
            paths.append(write_predictions(path, columns))
    return paths


def _predict(evaluator: Evaluator, task: TaskInfo, restored: RestoredModel, model_dir: str) -> Any:
    """Predictions of a checkpoint, ordered by the weights that lie beside it."""
    evaluator.ranking = read_ranking(model_dir, restored.step)
    return evaluator.predict(task, restored.model, restored.variables)


def _name(task: str, evaluator: Evaluator, step: int) -> str:
    """A file's default name; metrics of some rows, or of a part, do not replace those of all."""
    part = "" if evaluator.has_towers else "-without_towers"
    sample = f"-sample{evaluator.sample}" if evaluator.sample else ""
    first = f"-first{evaluator.limit}" if evaluator.limit else ""
    return f"{task}-{evaluator.split}-{step}{part}{sample}{first}"


def _check_output(output: str | epath.Path) -> None:
    if jax.process_index() == 0:
        check_output(epath.Path(output))


def _folder(model_dir: str) -> epath.Path:
    """Of a run; of a packed file, where it lies."""
    path = epath.Path(model_dir)
    return path.parent if path.is_file() else path


def restored_evaluator(
    model_dir: str,
    name: str,
    lengths: Mapping[str, int],
    split: str,
    batch_size: int,
    step: int | None,
    limit: int | None,
    k: int | None = None,
) -> tuple[Evaluator, RestoredModel]:
    """An evaluator, and the checkpoint that it evaluates, on the evaluator's devices."""
    # What is not asked for here gin sets; an argument would override it.
    asked = {"limit": limit, "ks": None if k is None else (k,)}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    evaluator = Evaluator(name, lengths, batch_size, split=split, **given)
    return evaluator, _restored(model_dir, name, evaluator, step)


def _restored(
    model_dir: str, name: str, evaluator: Evaluator, step: int | None = None
) -> RestoredModel:
    if Path(model_dir).is_dir():  # before the rest of a large checkpoint is read
        prompts = open_checkpoint(model_dir, step).config.prompts
        for task in evaluator.tasks:
            check_task(task, prompts, model_dir)
    return restore_model(
        model_dir,
        step=step,
        vocabulary_fingerprint=task_vocabulary(name).fingerprint,
        mesh=evaluator.runtime.mesh,
        rules=evaluator.runtime.rules,
    )
