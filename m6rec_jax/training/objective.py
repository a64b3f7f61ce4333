"""What a run minimises, as `Step` says: the objectives, and what is learnt from teachers."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax

from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.restore import PARAMS, PROMPTS
from m6rec_jax.checkpoints.trees import PyTree
from m6rec_jax.engine.loaded_model import digest
from m6rec_jax.engine.model_folder import restore_model
from m6rec_jax.objectives import Loss, total_loss
from m6rec_jax.objectives.distillation import TEACHER, Distillation, check_teacher, with_teacher
from m6rec_jax.objectives.sentences import SENTENCE_ENCODER, with_sentences
from m6rec_jax.training.data_state import Batch
from m6rec_jax.training.options import Step
from m6rec_jax.training.rounded_weights import rounded, with_rounded_weights
from m6rec_jax.training.sentences import SentenceEncoder, add_sentences, encoder_folder
from m6rec_jax.training.task_data import text_vocabulary
from m6rec_jax.training.train_state import TrainSetup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a run, and what it needs.

    Attributes:
      loss: of the model's variables and `fixed`.
      fixed: collections of variables that never change; see `TrainState.fixed`.
      fingerprints: of the teachers, for the manifest.
      add_features: adds what the loss reads to a batch on the host; any thread may call it.
      evaluated: the variables that a validation evaluates, of those that train.
    """

    loss: Loss = total_loss
    fixed: dict[str, PyTree] = dataclasses.field(default_factory=dict)
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    add_features: Callable[[Batch], Batch] = lambda batch: batch
    evaluated: Callable[[Any], Any] = lambda variables: variables

    def replace(self, **changes: Any) -> Objective:
        """A copy with other parts."""
        return dataclasses.replace(self, **changes)


def make_objective(
    step: Step, setup: TrainSetup, task: str, vocabulary_fingerprint: str | None
) -> Objective:
    """The objective that a run's settings ask for.

    Args:
      step: the settings.
      setup: of the run.
      task: a registered task or mixture, whose vocabulary a sentence encoder reads.
      vocabulary_fingerprint: of the run; None: not known.

    Raises:
      CheckpointError: no such teacher, one of another vocabulary, or damage.
      ConfigError: settings that do not fit the two models.
    """
    objective = Objective()
    if step.distillation is not None:
        objective = _taught(objective, step.distillation, setup, vocabulary_fingerprint)
    if step.sentences is not None:
        encoder = SentenceEncoder(encoder_folder(step.sentences.encoder), step.sentences.max_tokens)
        logger.info("sentence encoder: fingerprint %s…", encoder.fingerprint[:16])
        objective = objective.replace(
            loss=with_sentences(objective.loss),
            fingerprints={**objective.fingerprints, SENTENCE_ENCODER: encoder.fingerprint},
            add_features=add_sentences(step.sentences, encoder, text_vocabulary(task)),
        )
    if step.weight_bits is not None:
        objective = objective.replace(
            loss=with_rounded_weights(objective.loss, step.weight_bits),
            evaluated=jax.jit(functools.partial(rounded, bits=step.weight_bits)),
        )
    return objective


def _taught(
    objective: Objective,
    distillation: Distillation,
    setup: TrainSetup,
    vocabulary_fingerprint: str | None,
) -> Objective:
    location = locate(distillation.teacher)  # once: that run may still be saving
    manifest = read_manifest(location)
    teacher = restore_model(
        location.folder,
        vocabulary_fingerprint=vocabulary_fingerprint,
        mesh=setup.mesh,
        rules=setup.rules,
    )
    check_teacher(distillation, teacher.model.config, setup.model.config)
    tensors = {name: manifest.to_json()["tensors"].get(name) for name in (PARAMS, PROMPTS)}
    fingerprint = digest({"config": manifest.model_config, "tensors": tensors})  # checksums
    logger.info("teacher: %s, fingerprint %s…", location.folder, fingerprint[:16])
    return objective.replace(
        loss=with_teacher(objective.loss, distillation, teacher.model),
        fixed={TEACHER: dict(teacher.variables)},
        fingerprints={TEACHER: fingerprint},
    )
