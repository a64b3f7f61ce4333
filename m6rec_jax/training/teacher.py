"""The teacher of a run: restored beside it, recorded in it, never saved with it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from jax.sharding import Mesh

from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.restore import PARAMS, PROMPTS
from m6rec_jax.engine.loaded_model import digest
from m6rec_jax.engine.model_folder import restore_model
from m6rec_jax.errors import ConfigError
from m6rec_jax.objectives.distillation import TEACHER, Distillation, DistillationLoss
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.training.train_step import LossFunction

logger = logging.getLogger(__name__)


def with_teacher(
    loss: LossFunction,
    distillation: Distillation,
    run: RunDescription,
    mesh: Mesh,
    rules: LogicalRules,
) -> tuple[LossFunction, dict[str, Any], RunDescription]:
    """What a run needs so that its model learns from a teacher.

    Args:
      loss: the objectives.
      distillation: the teacher, and what is learnt of it.
      run: the student's description.
      mesh, rules: where the teacher goes.

    Returns:
      The loss of both; `TrainState.fixed` with the teacher's variables; and the run's description
      with the teacher's fingerprint.

    Raises:
      CheckpointError: no such teacher, one of another vocabulary, or damage.
      ConfigError: settings that do not fit the two models.
    """
    location = locate(distillation.teacher)  # once: that run may still be saving
    manifest = read_manifest(location)
    if run.model_config is None:
        raise ConfigError("a run that is distilled describes its model")
    restored = restore_model(
        location.folder,
        vocabulary_fingerprint=run.vocabulary_fingerprint,
        mesh=mesh,
        rules=rules,
    )
    described = manifest.to_json()
    tensors = {item: described["tensors"].get(item) for item in (PARAMS, PROMPTS)}  # checksums
    fingerprint = digest({"config": manifest.model_config, "tensors": tensors})
    logger.info("teacher: %s, fingerprint %s…", location.folder, fingerprint[:16])
    return (
        DistillationLoss(distillation, loss, restored.model, run.model_config),
        {TEACHER: dict(restored.variables)},
        dataclasses.replace(run, extra={**run.extra, TEACHER: fingerprint}),
    )
