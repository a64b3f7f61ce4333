"""Writes, when a run under t5x starts, what its checkpoints do not say.

train.summarize_config_fn = @describe_run
describe_run.model = %MODEL
describe_run.task_feature_lengths = %TASK_FEATURE_LENGTHS
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gin
import jax
from etils import epath
from t5x import gin_utils

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.engine.model_folder import ASSETS_FOLDER
from m6rec_jax.evaluation.assets import save_task_assets
from m6rec_jax.pipeline.row_layout import check_prompt_rows
from m6rec_jax.pipeline.task_rows import tasks_of
from m6rec_jax.t5x_bridge.checkpoints import write_description
from m6rec_jax.t5x_bridge.model import M6RecModel


@gin.configurable
def describe_run(
    model_dir: str,
    summary_writer: Any,
    step: int,
    *,
    model: M6RecModel,
    task_feature_lengths: Mapping[str, int],
) -> None:
    """Writes t5x's `config.gin`, `m6rec.json` and the `inference` folder to MODEL_DIR.

    Args:
      model_dir, summary_writer, step: as t5x gives them.
      model: of the run.
      task_feature_lengths: `{"inputs": S, "targets": T}`.

    Raises:
      ConfigError: a task has no row of the prompt bank; see `check_prompt_rows`.
    """
    check_prompt_rows(tasks_of(model.mixture_or_task_name), model.module.config.prompts.num_tasks)
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() != 0:
        return
    run = RunDescription(
        model_config=model.module.config,
        vocabulary_fingerprint=model.input_vocabulary.text.fingerprint,
        trainable=model.trainable,
        extra={"trained_by": "t5x"},
    )
    write_description(model_dir, run)
    # A user may have set a limit of their own in what an earlier launch wrote.
    if not (epath.Path(model_dir) / ASSETS_FOLDER).exists():
        save_task_assets(model_dir, model.mixture_or_task_name, task_feature_lengths)
