"""What a run trains and where; its state: step, backbone, prompts, optimizer state."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from m6rec_jax.checkpoints.trees import PyTree
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.frozen_backbone import held_in
from m6rec_jax.model.m6rec import M6Rec, abstract_variables
from m6rec_jax.sharding import LogicalRules, axis_rules, placed_shapes, replicated

TRAINABLE = ("prompts", "all")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A tree of arrays (or, when abstract, of `jax.ShapeDtypeStruct` with shardings).

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: the backbone.
      prompts: what is specific to the tasks.
      opt_state: optax state over the groups that train, nothing else.
      fixed: collections that the loss reads beside the model's, such as a teacher's variables.
        They never change and are in no checkpoint.
    """

    step: Any
    params: PyTree
    prompts: PyTree
    opt_state: PyTree
    fixed: dict[str, PyTree] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, "prompts": self.prompts}

    def replace(self, **changes: Any) -> Self:
        """A copy with other trees."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """What is trained, and where.

    Attributes:
      model: the model.
      optimizer: over the groups that train (`trained`).
      mesh, rules: where its arrays live.
      trainable: 'prompts' (the backbone is frozen) or 'all'.
      seed: of initial values and dropout.
      frozen_dtype: type in which a frozen backbone is kept ('bfloat16' halves its memory; None:
        float32). Ignored when the backbone trains.
    """

    model: M6Rec
    optimizer: optax.GradientTransformation
    mesh: Mesh
    rules: LogicalRules
    trainable: str = "all"
    seed: int = 0
    frozen_dtype: str | None = None

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which programs are traced for the mesh."""
        with jax.set_mesh(self.mesh), axis_rules(self.rules):
            yield

    def trained(self, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The groups that get gradients: `{'prompts': ...}`, for 'all' also `{'params': ...}`.

        Raises:
          ConfigError: unknown choice, or a model without prompts when only they would train.
        """
        if self.trainable not in TRAINABLE:
            raise ConfigError(
                f"train.trainable = {self.trainable!r} is not one of {', '.join(TRAINABLE)}"
            )
        prompts = variables.get("prompts", {})
        if self.trainable == "all":
            return {"params": variables["params"], "prompts": prompts}
        if not jax.tree.leaves(prompts):
            raise ConfigError(
                "train.trainable = 'prompts', but the model has no prompts: set PromptConfig "
                "(num_prompts, adapter_rank, ...) or train.trainable = 'all'"
            )
        return {"prompts": prompts}

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of a state; raises ConfigError for another `frozen_dtype`."""
        boxed = {"prompts": {}, **abstract_variables(self.model.config)}
        # Optax walks through the boxes, so moments keep the logical names of their parameters.
        opt_state = jax.eval_shape(self.optimizer.init, self.trained(boxed))
        params = placed_shapes(boxed["params"], self.mesh, self.rules)
        return TrainState(
            step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self.mesh)),
            params=params if self.trainable == "all" else held_in(params, self.frozen_dtype),
            prompts=placed_shapes(boxed["prompts"], self.mesh, self.rules),
            opt_state=placed_shapes(opt_state, self.mesh, self.rules),
        )
