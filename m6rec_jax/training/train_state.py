"""The state of a run: step, backbone, prompts, and optimizer state of what trains, on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from m6rec_jax.checkpoints.trees import PyTree
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.frozen_backbone import held_in
from m6rec_jax.model.m6rec import M6Rec, abstract_variables
from m6rec_jax.sharding import LogicalRules, placed_shapes, replicated

TRAINABLE = ("prompts", "all")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A tree of arrays (or, when abstract, of `jax.ShapeDtypeStruct` with shardings).

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: the backbone.
      prompts: what is specific to the tasks.
      opt_state: optax state over the groups that train (see `trainable_groups`), nothing else.
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


def trainable_groups(variables: Mapping[str, PyTree], trainable: str) -> dict[str, PyTree]:
    """The groups that get gradients: `{'prompts': ...}`, for 'all' also `{'params': ...}`.

    Raises:
      ConfigError: unknown choice, or a model without prompts when only they would train.
    """
    if trainable not in TRAINABLE:
        raise ConfigError(f"train.trainable = {trainable!r} is not one of {', '.join(TRAINABLE)}")
    prompts = variables.get("prompts", {})
    if trainable == "prompts":
        if not jax.tree.leaves(prompts):
            raise ConfigError(
                "train.trainable = 'prompts', but the model has no prompts: set PromptConfig "
                "(num_prompts, adapter_rank, ...) or train.trainable = 'all'"
            )
        return {"prompts": prompts}
    return {"params": variables["params"], "prompts": prompts}


def abstract_state(
    model: M6Rec,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: LogicalRules,
    *,
    trainable: str,
    frozen_dtype: str | None = None,
) -> TrainState:
    """Shapes, types and shardings of a state, without computing any.

    Args:
      trainable: 'prompts' or 'all'.
      frozen_dtype: type in which a frozen backbone is kept ('bfloat16' halves its memory; None:
        float32). Ignored when the backbone trains.

    Raises:
      ConfigError: another `frozen_dtype`.
    """
    boxed = dict(abstract_variables(model.config))
    boxed.setdefault("prompts", {})
    groups = trainable_groups(boxed, trainable)
    # Optax walks through the boxes, so moments keep the logical names of their parameters.
    opt_state = jax.eval_shape(optimizer.init, groups)
    params = placed_shapes(boxed["params"], mesh, rules)
    if trainable != "all":
        params = held_in(params, frozen_dtype)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh)),
        params=params,
        prompts=placed_shapes(boxed["prompts"], mesh, rules),
        opt_state=placed_shapes(opt_state, mesh, rules),
    )
