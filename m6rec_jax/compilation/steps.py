"""The programs that a run compiles, traced for devices that need not exist: train, score, decode.

Nothing is computed or allocated: all arguments are shapes with shardings.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import gin
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from m6rec_jax import configuration
from m6rec_jax.engine.candidates.scoring import class_log_probabilities
from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.engine.decoding.generation import generate
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.pipeline.features import MODEL_FEATURES, feature_lengths
from m6rec_jax.sharding import (
    LogicalRules,
    axis_rules,
    batch_sharding,
    check_rows,
    compiler_options,
    data_parallel,
    replicated,
)
from m6rec_jax.training.train_state import TrainSetup
from m6rec_jax.training.train_step import jit_step, make_train_step

logger = logging.getLogger(__name__)
STEPS = ("train", "score", "decode")
Features = dict[str, jax.ShapeDtypeStruct]
# Left out of the step that is compiled: two need another model at hand, two are seldom set.
_LEFT_OUT = (
    *("Step.distillation", "Step.weight_bits"),
    "BatchIterator.pack",
)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the steps are made of; `gin_configs/commands/compile.gin` binds it to a run's macros.

    Attributes:
      model: the model.
      task_feature_lengths: `{"inputs": S, "targets": T}`, tokens.
      optimizer: of `training.optimizers`.
      trainable: 'prompts' or 'all'.
      batch_size: rows of a step over all devices; None: `rows_per_device` times the devices.
      rows_per_device: rows that one device takes.
      rules: sharding rules; None: `data_parallel`.
      frozen_dtype, accumulation_steps: as for `training.loop.train`.
    """

    model: M6Rec = gin.REQUIRED
    task_feature_lengths: Mapping[str, int] = gin.REQUIRED
    optimizer: optax.GradientTransformation = gin.REQUIRED
    trainable: str = "all"
    batch_size: int | None = None
    rows_per_device: int = 4
    rules: LogicalRules | None = None
    frozen_dtype: str | None = None
    accumulation_steps: int = 1

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.model.config

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a row: source and target."""
        lengths = feature_lengths(self.task_feature_lengths)
        return lengths["encoder_input_tokens"], lengths["decoder_input_tokens"]

    @property
    def logical_rules(self) -> LogicalRules:
        """The sharding rules of the steps."""
        return data_parallel() if self.rules is None else tuple(self.rules)

    def rows(self, mesh: Mesh) -> int:
        """Rows of a step; raises ConfigError as `check_rows`."""
        rows = self.batch_size or self.rows_per_device * mesh.size
        check_rows(rows, mesh, self.accumulation_steps)
        return rows


@dataclasses.dataclass(frozen=True)
class Program:
    """A step, ready to be compiled.

    Attributes:
      jitted: with shardings and donated arguments.
      arguments: abstract.
      mesh, rules: of the run.
      loop_trips: how often a loop runs, at most, whose end depends on the data.
    """

    jitted: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    rules: LogicalRules
    loop_trips: int = 1

    def trace(self) -> jax.stages.Traced:
        """The step as JAX traces it on the mesh."""
        with jax.set_mesh(self.mesh), axis_rules(self.rules):
            return self.jitted.trace(*self.arguments)

    def compile(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
        """Compiles what `trace` returned, with the options that training compiles with.

        Raises JaxRuntimeError where XLA refuses it.
        """
        options = compiler_options(self.mesh.devices.flat[0].platform)
        with jax.set_mesh(self.mesh), axis_rules(self.rules):
            return traced.lower().compile(compiler_options=options or None)


def missing_steps(config: ModelConfig) -> dict[str, str]:
    """The steps that a model does not have, and why."""
    missing = {}
    if config.prompts.head == "none":
        missing["score"] = "the model has no head for classes (PromptConfig.head = 'none')"
    if config.cross_attention_at != "all":
        missing["decode"] = "the model only scores (ModelConfig.cross_attention_at = 'ends')"
    return missing


def make_program(name: str, settings: StepSettings, mesh: Mesh) -> Program:
    """A step of a run, one of `STEPS` that its model has.

    Raises ConfigError for settings that do not fit each other or the mesh.
    """
    makers = {"train": _train, "score": _score, "decode": _decode}
    return makers[name](settings, mesh)


def _train(settings: StepSettings, mesh: Mesh) -> Program:
    rows, parts = settings.rows(mesh), settings.accumulation_steps
    setup = _setup(settings, mesh)
    state = setup.abstract_state
    features = _features(settings, mesh, rows // parts, MODEL_FEATURES, parts)
    step = make_train_step(setup, accumulation_steps=parts)
    if left_out := [name for name in _LEFT_OUT if configuration.bound(name)]:
        logger.warning(
            "compiled without %s: memory and operations are those of the plain step",
            ", ".join(left_out),
        )
    jitted = jit_step(setup, step, state)
    return Program(jitted, (state, features), mesh, settings.logical_rules)


def _score(settings: StepSettings, mesh: Mesh) -> Program:
    rows, model = settings.rows(mesh), settings.model
    variables = _setup(settings, mesh).abstract_state.variables
    names = ("encoder_input_tokens", "encoder_block_ids", "decoder_input_tokens")
    features = _features(settings, mesh, rows, (*names, "decoder_block_ids", "task_ids"))

    def score(variables: Any, features: Mapping[str, jax.Array]) -> jax.Array:
        return class_log_probabilities(model, variables, features)

    jitted = jax.jit(score, out_shardings=batch_sharding(mesh))
    return Program(jitted, (variables, features), mesh, settings.logical_rules)


def _decode(settings: StepSettings, mesh: Mesh) -> Program:
    rows, model = settings.rows(mesh), settings.model
    variables = _setup(settings, mesh).abstract_state.variables
    _, target = settings.lengths
    names = ("encoder_input_tokens", "encoder_block_ids", "task_ids")
    by_rows = batch_sharding(mesh)
    features = _features(settings, mesh, rows, names)
    features["prefix_ids"] = jax.ShapeDtypeStruct((rows, target), jnp.int32, sharding=by_rows)
    any_token: Any = jax.ShapeDtypeStruct(  # stands for the array that a call passes
        (settings.config.vocab_size,), jnp.bool_, sharding=replicated(mesh)
    )
    allowed = Automaton(any_token)

    def decode(variables: Any, features: Mapping[str, jax.Array], allowed: Automaton) -> Any:
        return generate(model, "greedy", 1, variables, features, allowed, None)

    return Program(
        jax.jit(decode, out_shardings=by_rows),
        (variables, features, allowed),
        mesh,
        settings.logical_rules,
        loop_trips=target,
    )


def _setup(settings: StepSettings, mesh: Mesh) -> TrainSetup:
    return TrainSetup(
        settings.model,
        settings.optimizer,
        mesh,
        settings.logical_rules,
        trainable=settings.trainable,
        frozen_dtype=settings.frozen_dtype,
    )


def _features(
    settings: StepSettings, mesh: Mesh, rows: int, names: Any, accumulation_steps: int = 1
) -> Features:
    lengths = feature_lengths(settings.task_feature_lengths)
    leading = (accumulation_steps,) if accumulation_steps > 1 else ()
    sharding = batch_sharding(mesh, leading=len(leading))
    return {
        name: jax.ShapeDtypeStruct(
            (*leading, rows, lengths[name]), MODEL_FEATURES[name].dtype, sharding=sharding
        )
        for name in names
    }
