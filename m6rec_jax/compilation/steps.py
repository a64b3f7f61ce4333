"""The programs that a run compiles, lowered for devices that need not exist: train, score, decode.

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
from m6rec_jax.engine.constraints import AllowedTokens
from m6rec_jax.engine.generation_program import generate
from m6rec_jax.engine.scoring import class_log_probabilities
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.flops import ModelFlops, decode_flops, score_flops, train_flops
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.pipeline.features import MODEL_FEATURES, feature_lengths
from m6rec_jax.sharding import (
    LogicalRules,
    axis_rules,
    batch_sharding,
    check_rows,
    data_parallel,
    replicated,
)
from m6rec_jax.training.train_state import TrainState, abstract_state
from m6rec_jax.training.train_step import jit_step, make_train_step

logger = logging.getLogger(__name__)
Features = dict[str, jax.ShapeDtypeStruct]
# Left out of the step that is compiled: two need another model at hand, three are seldom set.
_LEFT_OUT = (
    *("Step.distillation", "Step.sentences", "Step.weight_bits", "Step.loss"),
    "BatchIterator.pack",
)

# What training reads through macros, and this through the same ones.
_THROUGH_MACROS = {
    "Step.rules": "RULES",
    "Step.accumulation_steps": "ACCUMULATION_STEPS",
    "Step.frozen_dtype": "FROZEN_DTYPE",
    "TrainingData.batch_size": "BATCH_SIZE",
    "train.trainable": "TRAINABLE",
    "train.optimizer": "OPTIMIZER",
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the steps are made of; `gin_configs/runs/compile.gin` binds it to a run's macros.

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
    def writes(self) -> bool:
        """The loss needs vocabulary logits."""
        return configuration.bound("total_loss.language_modelling_weight", 1.0) != 0

    def rows(self, mesh: Mesh) -> int:
        """Rows of a step; raises ConfigError as `check_rows`."""
        rows = self.batch_size or self.rows_per_device * mesh.size
        check_rows(rows, mesh, self.accumulation_steps)
        return rows


@dataclasses.dataclass(frozen=True)
class Program:
    """A step, ready to be lowered.

    Attributes:
      name: 'train', 'score' or 'decode'.
      flops: the model's own.
      loop_trips: how often a loop runs, at most, whose bound the compiled text does not say.
      jitted: with shardings and donated arguments.
      arguments: abstract.
      argument_bytes: of each argument on one device: what state and batch take, by name.
      shards_parameters: no device holds all of them.
    """

    name: str
    flops: ModelFlops
    loop_trips: int
    jitted: Any
    arguments: tuple[Any, ...]
    argument_bytes: dict[str, int]
    shards_parameters: bool

    def lower(self, mesh: Mesh, rules: LogicalRules) -> jax.stages.Lowered:
        """Traces the step on a mesh."""
        with jax.set_mesh(mesh), axis_rules(rules):
            return self.jitted.lower(*self.arguments)


def make_program(name: str, settings: StepSettings, mesh: Mesh) -> Program | str:
    """A step of a run, or why the run has no such step.

    Raises ConfigError for settings that do not fit each other or the mesh.
    """
    if name == "train":
        return _train(settings, mesh)
    if name == "score":
        if settings.config.prompts.head == "none":
            return "the model has no head for classes (PromptConfig.head = 'none')"
        return _score(settings, mesh)
    if settings.config.cross_attention_at != "all":
        return "the model only scores (ModelConfig.cross_attention_at = 'ends')"
    return _decode(settings, mesh)


def rules_of(settings: StepSettings) -> LogicalRules:
    """The sharding rules of the steps."""
    return data_parallel() if settings.rules is None else tuple(settings.rules)


def _train(settings: StepSettings, mesh: Mesh) -> Program:
    rows, parts = settings.rows(mesh), settings.accumulation_steps
    state = _state(settings, mesh)
    features = _features(settings, mesh, rows // parts, MODEL_FEATURES, parts)
    step = make_train_step(
        settings.model,
        settings.optimizer,
        trainable=settings.trainable,
        seed=0,
        accumulation_steps=parts,
    )
    for name, macro in _THROUGH_MACROS.items():
        if configuration.bound_directly(name):
            raise ConfigError(f"{name} is set, which is not compiled: set {macro} in its place")
    if left_out := [name for name in _LEFT_OUT if configuration.bound(name)]:
        logger.warning(
            "compiled without %s: memory, products and times are those of the plain step",
            ", ".join(left_out),
        )
    source, target = settings.lengths
    return Program(
        name="train",
        flops=train_flops(
            settings.config,
            rows,
            source,
            target,
            trainable=settings.trainable,
            language_modelling=settings.writes,
        ),
        loop_trips=1,
        jitted=jit_step(step, state, mesh),
        arguments=(state, features),
        argument_bytes=_bytes(
            params=state.params,
            prompts=state.prompts,
            optimizer=state.opt_state,
            batch=features,
        ),
        shards_parameters=_are_sharded(state.params),
    )


def _score(settings: StepSettings, mesh: Mesh) -> Program:
    rows, model = settings.rows(mesh), settings.model
    variables = _state(settings, mesh).variables
    names = ("encoder_input_tokens", "encoder_block_ids", "decoder_input_tokens")
    features = _features(settings, mesh, rows, (*names, "decoder_block_ids", "task_ids"))

    def score(variables: Any, features: Mapping[str, jax.Array]) -> jax.Array:
        return class_log_probabilities(model, variables, features)

    return Program(
        name="score",
        flops=score_flops(settings.config, rows, *settings.lengths),
        loop_trips=1,
        jitted=jax.jit(score, out_shardings=batch_sharding(mesh)),
        arguments=(variables, features),
        argument_bytes=_bytes(**variables, batch=features),
        shards_parameters=_are_sharded(variables["params"]),
    )


def _decode(settings: StepSettings, mesh: Mesh) -> Program:
    rows, model = settings.rows(mesh), settings.model
    variables = _state(settings, mesh).variables
    source, target = settings.lengths
    names = ("encoder_input_tokens", "encoder_block_ids", "task_ids")
    by_rows = batch_sharding(mesh)
    features = _features(settings, mesh, rows, names)
    features["prefix_ids"] = jax.ShapeDtypeStruct((rows, target), jnp.int32, sharding=by_rows)
    any_token: Any = jax.ShapeDtypeStruct(  # stands for the array that a call passes
        (settings.config.vocab_size,), jnp.bool_, sharding=replicated(mesh)
    )
    allowed = AllowedTokens(any_token)

    def decode(variables: Any, features: Mapping[str, jax.Array], allowed: AllowedTokens) -> Any:
        return generate(model, variables, features, allowed, None, verb="greedy", num_texts=1)

    return Program(
        name="decode",
        flops=decode_flops(settings.config, rows, source, target),
        loop_trips=target,
        jitted=jax.jit(decode, out_shardings=by_rows),
        arguments=(variables, features, allowed),
        argument_bytes=_bytes(**variables, batch=features),
        shards_parameters=_are_sharded(variables["params"]),
    )


def _state(settings: StepSettings, mesh: Mesh) -> TrainState:
    return abstract_state(
        settings.model,
        settings.optimizer,
        mesh,
        rules_of(settings),
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


def _are_sharded(params: Any) -> bool:
    return not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))


def _bytes(**trees: Any) -> dict[str, int]:
    """Of every tree on one device."""

    def on_device(leaf: jax.ShapeDtypeStruct) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape)
        size = leaf.dtype.itemsize
        for length in shape:
            size *= length
        return size

    return {name: sum(map(on_device, jax.tree.leaves(tree))) for name, tree in trees.items()}
