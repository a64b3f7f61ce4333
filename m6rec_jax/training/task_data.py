"""The batches of a registered task: what the loop reads unless it is given another source."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import gin
import numpy as np
from etils import epath
from jax.sharding import Mesh

from m6rec_jax.configuration import bound
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.sharding import batch_reader
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.data_state import Batch, ResumableBatches
from m6rec_jax.training.options import MakeEvaluationBatches, TrainingData


def training_batches(data: TrainingData, stream: tuple[int, int]) -> ResumableBatches:
    """This process's part of the training batches; `stream` is of `sharding.batch_reader`."""
    make = data.batches
    if make is None:
        from m6rec_jax.pipeline.batches import BatchIterator  # imports tensorflow

        make = BatchIterator
    index, count = stream
    return make(
        data.mixture_or_task_name,
        data.task_feature_lengths,
        data.batch_size,
        process_index=index,
        process_count=count,
    )


def validation_batches(
    data: TrainingData, make: MakeEvaluationBatches | None, mesh: Mesh, *, rows: int, sample: int
) -> Iterable[Batch]:
    """This process's part of one pass over `sample` rows (0: all), in batches of `rows`."""
    if make is None:
        from m6rec_jax.pipeline.batches import EvaluationBatches

        make = EvaluationBatches
    index, count = batch_reader(mesh)
    return make(
        data.mixture_or_task_name,
        data.task_feature_lengths,
        rows,
        sample=sample,
        process_index=index,
        process_count=count,
    )


def trained_on(file: Path) -> tuple[str, Mapping[str, int]]:
    """Name and feature lengths of the task of a run, as gin is configured.

    Raises:
      ConfigError: gin, which has read the run's settings in `file`, names no task.
    """
    name = bound("TrainingData.mixture_or_task_name")
    lengths = bound("TrainingData.task_feature_lengths")
    if name is None or lengths is None:
        raise ConfigError(
            f"{file} names no task: TrainingData.mixture_or_task_name and task_feature_lengths "
            "are not set; give them with --gin_file or --gin.NAME=VALUE"
        )
    return name, lengths


def is_of_pipeline(batches: ResumableBatches) -> bool:
    """Whether batches are a registered task's, not those of another source."""
    pipeline = sys.modules.get("m6rec_jax.pipeline.batches")  # imported where it made the batches
    return pipeline is not None and isinstance(batches, pipeline.BatchIterator)


def text_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a registered task; raises ConfigError as `task_rows.task_vocabulary`."""
    from m6rec_jax.pipeline.task_rows import task_vocabulary

    return task_vocabulary(name)


def jobs_that_fit(name: str, config: ModelConfig) -> dict[str, int]:
    """The jobs whose losses a run logs apart: seqio tasks of a mixture and their numbers.

    Empty where there is one task, whose loss is the run's.

    Raises:
      ConfigError: the task or mixture does not fit the model: the vocabulary is larger than the
        embedding; a task has no row of the bank, or one that the bank has not (indexing would give
        NaN); or gin names a task that there is not.
    """
    from m6rec_jax.pipeline.row_layout import check_prompt_rows, job_id
    from m6rec_jax.pipeline.task_rows import tasks_of

    refuse_larger_vocabulary(name, text_vocabulary(name), config)
    tasks = tasks_of(name)
    check_prompt_rows(tasks, config.prompts.num_tasks)
    return {task: job_id(task) for task in tasks} if len(tasks) > 1 else {}


def check_labels(batch: Batch, prompts: PromptConfig) -> None:
    """Every label must be a class of its task's head: any other would train as a loss of 0.

    Args:
      batch: with `decoder_labels` `[rows, target]`, -1 where there is none, and `task_ids`
        `[rows, 1]`; batches without them are not looked at.
      prompts: of the model.

    Raises:
      ConfigError: a label that the task has no class for.
    """
    if prompts.head == "none" or not {"decoder_labels", "task_ids"} <= batch.keys():
        return
    classes = np.asarray(prompts.task_sizes["task_num_options"])
    tasks = batch["task_ids"][:, 0]
    largest = batch["decoder_labels"].max(axis=1)
    for row in np.flatnonzero(largest >= classes[tasks])[:1]:
        raise ConfigError(
            f"a row of the task with prompt row {tasks[row]} has the label {largest[row]}, but its "
            f"head has num_options = {classes[tasks[row]]} classes, from 0 on: raise NUM_OPTIONS "
            "(in a bank PromptConfig.task_num_options)"
        )


def refuse_larger_vocabulary(name: str, vocabulary: Vocabulary, config: ModelConfig) -> None:
    """Raises ConfigError for a task's vocabulary with more ids than the embedding has rows.

    Indexing would give NaN, which looks like divergence.
    """
    if vocabulary.size > config.vocab_size:
        raise ConfigError(
            f"the vocabulary of {name} ({vocabulary.model_file}) has {vocabulary.size} ids, but "
            f"ModelConfig.vocab_size is {config.vocab_size}: set VOCAB_SIZE = {vocabulary.size}, "
            "or train a smaller vocabulary (train_vocabulary.size; control tokens come on top)"
        )


def prompt_row_of(task: str, mixture: str, config: ModelConfig) -> int:
    """The row of the bank that the prompts of a mixture's seqio task have.

    Raises:
      ConfigError: the mixture has no such task, or the task no row of the bank.
    """
    from m6rec_jax.pipeline.row_layout import prompt_row
    from m6rec_jax.pipeline.task_rows import tasks_of

    if task not in (tasks := tasks_of(mixture)):
        raise ConfigError(f"'{mixture}' has no task '{task}'; its tasks: {', '.join(tasks)}")
    return prompt_row(task, config.prompts.num_tasks)


def save_inference_assets(data: TrainingData, model_dir: str, *, resumed: bool) -> None:
    """Writes `MODEL_DIR/inference`, so that the folder can be loaded by itself."""
    # Beneath it are things that gin configures; runs/train.gin imports it before gin is locked.
    with gin.unlock_config():
        from m6rec_jax.engine.model_folder import ASSETS_FOLDER, SETTINGS_FILE
        from m6rec_jax.evaluation.assets import save_task_assets

    # A user may have set a limit of their own in what an earlier launch wrote; but what a launch
    # left that came to no checkpoint may be of other settings. The settings are written last.
    if not (resumed and (epath.Path(model_dir) / ASSETS_FOLDER / SETTINGS_FILE).exists()):
        save_task_assets(model_dir, data.mixture_or_task_name, data.task_feature_lengths)
