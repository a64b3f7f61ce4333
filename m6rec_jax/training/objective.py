"""What a run minimises, as `Step` says: the objectives, and what is learnt from a teacher."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax

from m6rec_jax.checkpoints.checkpoint import PARAMS, PROMPTS, open_checkpoint
from m6rec_jax.checkpoints.trees import PyTree, flatten, unflatten
from m6rec_jax.engine.model_folder import digest, restore_model
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.model.quantization import dequantized, quantized, scaled_axes
from m6rec_jax.objectives import Loss, total_loss
from m6rec_jax.objectives.distillation import TEACHER, check_teacher, with_teacher
from m6rec_jax.training.options import Step
from m6rec_jax.training.train_state import TrainSetup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a run, and what it needs.

    Attributes:
      loss: of the model's variables and `fixed`.
      fixed: collections of variables that never change; see `TrainState.fixed`.
      fingerprints: of the teacher, for the manifest.
      evaluated: the variables that a validation evaluates, of those that train.
    """

    loss: Loss = total_loss
    fixed: dict[str, PyTree] = dataclasses.field(default_factory=dict)
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    evaluated: Callable[[Any], Any] = lambda variables: variables


def make_objective(step: Step, setup: TrainSetup, vocabulary_fingerprint: str | None) -> Objective:
    """The objective that a run's settings ask for.

    Raises:
      CheckpointError: no such teacher, one of another vocabulary, or damage.
      ConfigError: settings that do not fit the two models.
    """
    objective = Objective()
    if (distillation := step.distillation) is not None:
        checkpoint = open_checkpoint(distillation.teacher)  # once: it may still be saving
        saved = dataclasses.asdict(checkpoint.manifest)
        teacher = restore_model(
            checkpoint.folder,
            vocabulary_fingerprint=vocabulary_fingerprint,
            mesh=setup.mesh,
            rules=setup.rules,
        )
        check_teacher(distillation, teacher.model.config, setup.model.config)
        tensors = {name: saved["tensors"].get(name) for name in (PARAMS, PROMPTS)}
        fingerprint = digest({"config": saved["model_config"], "tensors": tensors})  # checksums
        logger.info("teacher: %s, fingerprint %s…", checkpoint.folder, fingerprint[:16])
        objective = Objective(
            with_teacher(total_loss, distillation, teacher.model),
            fixed={TEACHER: dict(teacher.variables)},
            fingerprints={TEACHER: fingerprint},
        )
    if (bits := step.weight_bits) is not None:
        objective = dataclasses.replace(
            objective,
            loss=with_rounded_weights(objective.loss, bits),
            evaluated=jax.jit(functools.partial(rounded, bits=bits)),
        )
    return objective


def rounded(variables: Any, bits: int) -> Any:
    """The variables with the backbone that a packed file has (`model.quantization`).

    Gradients pass straight through the rounding (Bengio et al., 2013), so what trains are the
    floats; a frozen backbone is what prompts find when they are packed with it.
    """

    def of(weight: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        near = dequantized(*quantized(jax.lax.stop_gradient(weight), axes, bits))
        return weight + jax.lax.stop_gradient(near - weight)

    params = variables["params"]
    leaves = {
        name: of(leaf, axes) if (axes := scaled_axes(name)) else leaf
        for name, leaf in flatten(params).items()
    }
    return {**variables, "params": unflatten(leaves, params)}


def with_rounded_weights(loss: Loss, bits: int) -> Loss:
    """A loss of the rounded weights: quantisation-aware training."""

    def of_rounded(model: M6Rec, variables: Any, features: Any, **options: Any) -> Any:
        return loss(model, rounded(variables, bits), features, **options)

    return of_rounded
