"""Parts of an optimizer that keep a bank's tasks apart, as if each were trained by itself.

The prompts of all tasks are stacked in one leaf. A root mean square, a norm or a factored second
moment taken over the whole leaf would let one task's gradient change another task's step; and a
root mean square over elements that a smaller task does not have would change that task's own. With
one task everything here is optax's own, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m6rec_jax.checkpoints.trees import flatten, unflatten
from m6rec_jax.model.config import TASK_SIZES, ModelConfig
from m6rec_jax.model.layout import Leaf, prompt_leaves, tasks_with_whole_slice
from m6rec_jax.model.prompts import COLLECTION, task_axis

_START = f"{COLLECTION}/"
# Where one task's elements stand in a leaf, the axis of tasks included.
Part = tuple[slice, ...]


def task_axes(tree: Any) -> dict[str, int | None]:
    """`{name: axis of tasks}` of the groups that train; None in the backbone, which they share."""
    return {
        name: task_axis(name.removeprefix(_START)) if name.startswith(_START) else None
        for name in flatten(tree)
    }


def num_tasks(tree: Any) -> int:
    """How many tasks the bank has whose prompts are among the groups that train."""
    axes = task_axes(tree)
    return max(
        (leaf.shape[axes[name]] for name, leaf in flatten(tree).items() if axes[name] is not None),
        default=1,
    )


def parts_of_tasks(config: ModelConfig) -> dict[str, list[Part]]:
    """The elements that each task has of the leaves where tasks are of unlike sizes.

    Args:
      config: of the model.

    Returns:
      `{name: part of each task that has one}`, named as in `task_axes`, without leaves that every
      task has the whole of.
    """
    prompts = config.prompts
    if not any(getattr(prompts, name) for name in TASK_SIZES):
        return {}
    whole = tasks_with_whole_slice(config)
    unlike = {name: leaf for name, leaf in prompt_leaves(config).items() if not all(whole[name])}
    parts: dict[str, list[Part]] = {_START + name: [] for name in unlike}
    for task in range(prompts.num_tasks):
        alone = prompt_leaves(config.replace(prompts=prompts.of_task(task)))
        for name, leaf in unlike.items():
            if name in alone and 0 not in alone[name].shape:
                parts[_START + name].append(_part(leaf, alone[name], task))
    return parts


def by_task(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """A transformation without state that takes a leaf as a whole, applied to each task's part.

    `update` takes `task_parts`, which `parts_of_tasks` gives; elements that are no task's are then
    not updated. In leaves that they do not name a task has its whole slice.
    """

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        task_parts: Mapping[str, Sequence[Part]] | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args  # of other transformations
        parts = task_parts or {}
        axes, old = task_axes(updates), flatten(updates)
        values = flatten(updates if params is None else params)

        def of_leaf(update: jax.Array, value: jax.Array) -> jax.Array:
            return transformation.update(update, optax.EmptyState(), value)[0]

        def of_parts(update: jax.Array, value: jax.Array, own: Sequence[Part]) -> jax.Array:
            new = jnp.zeros_like(update)
            for part in own:
                new = new.at[part].set(of_leaf(update[part], value[part]))
            return new

        new = {}
        for name, leaf in old.items():
            if name in parts:
                new[name] = of_parts(leaf, values[name], parts[name])
                continue
            axis = axes[name]
            one = axis is None or leaf.shape[axis] == 1
            apply = of_leaf if one else jax.vmap(of_leaf, in_axes=axis, out_axes=axis)
            new[name] = apply(leaf, values[name])
        return unflatten(new, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def scale_by_factored_rms(
    decay_rate: float, min_dim_size_to_factor: int
) -> optax.GradientTransformation:
    """optax's, which never factors along the axis of tasks.

    The gradient of elements that a task does not have is zero, which cancels out of the product of
    row and column means. What is factored goes by the size of the largest task.

    Both factored sides are at least `min_dim_size_to_factor` long, so it is enough to ask for more
    than there are tasks.
    """

    def of(tree: Any) -> optax.GradientTransformation:
        tasks = num_tasks(tree)
        least = min_dim_size_to_factor if tasks == 1 else max(min_dim_size_to_factor, tasks + 1)
        return optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=least)

    return optax.GradientTransformation(
        lambda params: of(params).init(params),
        lambda updates, state, params=None: of(updates).update(updates, state, params),
    )


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients down to a norm: that of everything that trains, or of each task by itself.

    With several tasks each one's prompts have a norm of their own, and so has the backbone, where
    it trains as well.
    """
    whole = optax.clip_by_global_norm(max_norm)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        tasks = num_tasks(updates)
        if tasks == 1:
            return whole.update(updates, state, params)
        axes, leaves = task_axes(updates), flatten(updates)
        squares: dict[bool, jax.Array] = {True: jnp.zeros(tasks), False: jnp.zeros(())}
        for name, leaf in leaves.items():
            others = tuple(i for i in range(leaf.ndim) if i != axes[name])
            squares[axes[name] is not None] += jnp.sum(jnp.square(leaf), axis=others)
        factors = {
            # Both branches are finite where there is no gradient.
            of_tasks: jnp.where(square < max_norm**2, 1.0, max_norm * jax.lax.rsqrt(square))
            for of_tasks, square in squares.items()
        }
        clipped = {}
        for name, leaf in leaves.items():
            axis = axes[name]
            shape = [tasks if i == axis else 1 for i in range(leaf.ndim)]
            factor = factors[axis is not None]
            clipped[name] = leaf * (factor if axis is None else factor.reshape(shape))
        return unflatten(clipped, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _part(leaf: Leaf, alone: Leaf, task: int) -> Part:
    """Where a task's own leaf stands in the bank's."""
    axis, places = leaf.task_axis, leaf.places(alone.shape)
    return (*places[:axis], slice(task, task + 1), *places[axis + 1 :])
