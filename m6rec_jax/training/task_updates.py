"""Parts of an optimizer that keep a bank's tasks apart, as if each were trained by itself.

The prompts of all tasks are stacked in one leaf. A root mean square, a norm or a factored second
moment taken over the whole leaf would let one task's gradient change another task's step; and a
root mean square over elements that a smaller task does not have would change that task's own. With
one task everything here is optax's own, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from m6rec_jax.checkpoints.trees import flatten, unflatten
from m6rec_jax.model.config import TASK_SIZES, ModelConfig
from m6rec_jax.model.layout import prompt_leaves, tasks_with_whole_slice
from m6rec_jax.model.prompts import COLLECTION, task_axis

_START = f"{COLLECTION}/"
# Where each task's elements stand in a leaf: from and to along each axis but that of tasks, int32
# `[tasks, axes, 2]`.
TaskSizes = Mapping[str, np.ndarray]
_NONE: TaskSizes = {}


def task_sizes(config: ModelConfig) -> TaskSizes:
    """The elements that each task has of the leaves where tasks are of unlike sizes, by name.

    Leaves that every task has the whole of are not among them.
    """
    prompts = config.prompts
    if not any(getattr(prompts, name) for name in TASK_SIZES):
        return {}
    whole = tasks_with_whole_slice(config)
    unlike = {name: leaf for name, leaf in prompt_leaves(config).items() if not all(whole[name])}
    sizes = {
        _START + name: np.zeros((prompts.num_tasks, len(leaf.shape), 2), np.int32)
        for name, leaf in unlike.items()
    }
    for task in range(prompts.num_tasks):
        alone = prompt_leaves(config.replace(prompts=prompts.of_task(task)))
        for name, leaf in unlike.items():
            if name in alone:
                places = leaf.places(alone[name].shape)
                sizes[_START + name][task] = [(place.start, place.stop) for place in places]
                sizes[_START + name][task, leaf.task_axis] = 0, prompts.num_tasks
    return sizes


def clip_by_task_rms(threshold: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_block_rms` of each task's part of a leaf."""
    return _with_rms(lambda update, _, rms: update / jnp.maximum(1.0, rms(update) / threshold))


def scale_by_task_rms(least: float) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_param_block_rms` of each task's part of a leaf; `least` is of the scale."""
    return _with_rms(lambda update, value, rms: update * jnp.maximum(rms(value), least))


def _with_rms(
    function: Callable[[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """A transformation of each leaf by root mean squares, which are taken over each task's part.

    Args:
      function: (update, parameter, function that gives a root mean square to multiply with) → new
        update.

    Returns:
      A transformation whose `update` takes what `task_sizes` gives, under that name.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, task_sizes: TaskSizes = _NONE, **_: Any
    ) -> tuple[Any, Any]:
        values, new = flatten(updates if params is None else params), {}
        for name, leaf in flatten(updates).items():
            axis, mask, others = _axis(name), None, None
            if name in task_sizes:
                mask = _mask(leaf.shape, axis, task_sizes[name])
            if axis is not None and leaf.shape[axis] > 1:
                others = tuple(i for i in range(leaf.ndim) if i != axis)

            def rms(x: jax.Array, others: Any = others, mask: Any = mask) -> jax.Array:
                squares = jnp.mean(jnp.square(x), others, keepdims=others is not None, where=mask)
                return jnp.sqrt(squares)

            changed = function(leaf, values[name], rms)
            # A task that has nothing of a leaf has no mean there.
            new[name] = changed if mask is None else jnp.where(mask, changed, 0)
        return unflatten(new, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def scale_by_factored_rms(min_dim_size_to_factor: int) -> optax.GradientTransformation:
    """optax's, which never factors along the axis of tasks.

    The gradient of elements that a task does not have is zero, which cancels out of the product of
    row and column means. What is factored goes by the size of the largest task.

    Both factored sides are at least `min_dim_size_to_factor` long, so it is enough to ask for more
    than there are tasks.
    """

    def of(tree: Any) -> optax.GradientTransformation:
        tasks = _num_tasks(tree)
        least = min_dim_size_to_factor if tasks == 1 else max(min_dim_size_to_factor, tasks + 1)
        return optax.scale_by_factored_rms(min_dim_size_to_factor=least)

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
        tasks = _num_tasks(updates)
        if tasks == 1:
            return whole.update(updates, state, params)
        leaves, squares = flatten(updates), {True: jnp.zeros(tasks), False: jnp.zeros(())}
        for name, leaf in leaves.items():
            others = tuple(i for i in range(leaf.ndim) if i != _axis(name))
            squares[_axis(name) is not None] += jnp.sum(jnp.square(leaf), axis=others)
        factors = {
            # Both branches are finite where there is no gradient.
            of_tasks: jnp.where(square < max_norm**2, 1.0, max_norm * jax.lax.rsqrt(square))
            for of_tasks, square in squares.items()
        }
        clipped = {}
        for name, leaf in leaves.items():
            shape = [tasks if i == _axis(name) else 1 for i in range(leaf.ndim)]
            factor = factors[_axis(name) is not None]
            clipped[name] = leaf * (factor.reshape(shape) if factor.ndim else factor)
        return unflatten(clipped, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _axis(name: str) -> int | None:
    """A leaf's axis of tasks; None in the backbone, which they share."""
    return task_axis(name.removeprefix(_START)) if name.startswith(_START) else None


def _num_tasks(tree: Any) -> int:
    """How many tasks the bank has whose prompts are among the groups that train."""
    axes = ((leaf, _axis(name)) for name, leaf in flatten(tree).items())
    return max((leaf.shape[axis] for leaf, axis in axes if axis is not None), default=1)


def _mask(shape: tuple[int, ...], axis: int | None, sizes: np.ndarray) -> jax.Array:
    """Which elements of a bank's leaf are a task's: bool, of its shape."""
    mask = jnp.ones(shape, bool)
    for dimension in range(len(shape)):
        along = [len(sizes) if i == axis else 1 for i in range(len(shape))]
        first, end = (jnp.asarray(sizes[:, dimension, i]).reshape(along) for i in (0, 1))
        place = jax.lax.broadcasted_iota(jnp.int32, shape, dimension)
        mask &= (place >= first) & (place < end)
    return mask
