"""One task's tensors in the shapes of a bank, and out of it: axes are known by their names.

A task of any method fits one layout, in which it computes what it does alone (within float
tolerance). Soft prompts stand last along an axis that is longer in the bank, all else first.
Methods say what they change (`Method.for_bank`): options become the kernel of a linear head, the
scale of LoRA goes into its matrices. What a task does not have, or not in early layers, is neutral:
it changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.model.prompts import COLLECTION
from m6rec_jax.model.tuning import METHODS, owner

TASKS, PROMPTS = "tasks", "prompts"


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor of the collection `prompts`: its logical axes, 'tasks' among them, and shape."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def task_axis(self) -> int:
        """The axis of tasks: after that of layers."""
        return self.axes.index(TASKS)

    def of_task(self) -> Leaf:
        """One task's part: without the axis of tasks."""
        axis = self.task_axis
        return Leaf(
            self.axes[:axis] + self.axes[axis + 1 :], self.shape[:axis] + self.shape[axis + 1 :]
        )

    def places(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a smaller tensor of that shape stands: soft prompts last, all else first."""
        return tuple(
            slice(length - own, length) if axis == PROMPTS else slice(0, own)
            for axis, length, own in zip(self.axes, self.shape, shape, strict=True)
        )


@functools.lru_cache(maxsize=64)
def prompt_leaves(config: ModelConfig) -> Mapping[str, Leaf]:
    """`{name: leaf}` of a model's prompts; nothing is computed."""
    boxed = abstract_variables(config)
    boxes = jax.tree_util.tree_leaves_with_path(
        boxed.get(COLLECTION, {}), is_leaf=lambda node: isinstance(node, nn.meta.Partitioned)
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): Leaf(
            tuple(box.names), tuple(box.value.shape)
        )
        for path, box in boxes
    }


def tasks_with_whole_slice(config: ModelConfig) -> dict[str, list[bool]]:
    """Of each leaf, which tasks have the whole slice of it, and not less than the largest has."""
    prompts, leaves = config.prompts, prompt_leaves(config)
    tasks = range(prompts.num_tasks)
    alone = [prompt_leaves(config.replace(prompts=prompts.of_task(task))) for task in tasks]
    return {
        name: [name in own and own[name].of_task() == leaf.of_task() for own in alone]
        for name, leaf in leaves.items()
    }


def take_task(
    prompts: Mapping[str, Any], config: ModelConfig, task_id: int, own: PromptConfig
) -> dict[str, np.ndarray]:
    """One task's tensors out of a training run's bank.

    Args:
      prompts: `{name: array}` of the run.
      config: of the run's model.
      task_id: row of the bank.
      own: what to take: `config.prompts.of_task(task_id)`, or less.

    Returns:
      `{name: array}`, float32, in the sizes of `own` and without the axis of tasks.
    """
    stacked = prompt_leaves(config)
    taken = {}
    for name, leaf in prompt_leaves(config.replace(prompts=own)).items():
        array = np.take(np.asarray(prompts[name]), task_id, axis=stacked[name].task_axis)
        places = stacked[name].of_task().places(leaf.of_task().shape)
        taken[name] = np.ascontiguousarray(array[places], np.float32)
    return taken


def fit_task(
    tensors: Mapping[str, np.ndarray], task: ModelConfig, bank: ModelConfig
) -> dict[str, np.ndarray]:
    """One task's tensors as a row of a loaded bank; see the module's docstring.

    Args:
      tensors: of `take_task`.
      task: of the model with that task alone.
      bank: of the bank's model, with a linear head; there is room (`capacity.check_capacity`).

    Returns:
      `{name: array}` for every tensor of the bank, without the axis of tasks.
    """
    own = dict(tensors)
    for method in METHODS:
        own |= method.for_bank(own, task, bank)
    if task.prompts.adapters_late_only and not bank.prompts.adapters_late_only:
        own |= _without_early_layers(own, task)
    row = {}
    for name, leaf in prompt_leaves(bank).items():
        part, neutral = leaf.of_task(), owner(name).neutral
        row[name] = np.full(part.shape, neutral, np.float32)
        if name in own:
            values = own.pop(name)
            row[name][part.places(values.shape)] = values
    assert not own, f"no room for {sorted(own)}"
    return row


def _without_early_layers(
    tensors: Mapping[str, np.ndarray], task: ModelConfig
) -> dict[str, np.ndarray]:
    early = {"encoder": task.late_layers_start, "decoder": task.first_cross_layer}
    switched = {}
    for name, values in tensors.items():
        (tower, *_, last), method = name.split("/"), owner(name)
        if tower in early and last in method.switches:
            switched[name] = values.copy()
            switched[name][: early[tower]] = method.neutral
    return switched
