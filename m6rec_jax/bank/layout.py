"""One task's tensors in the shapes of a bank, and out of it: axes are known by their names.

A task of any method fits one layout, in which it computes what it does alone (within float
tolerance):

- Soft prompts stand last, all else stands first along an axis that is longer in the bank.
- Options become the kernel of a linear head: hidden · P / sqrt(embed) = hidden Pᵀ / sqrt(embed).
- The scale of a LoRA update goes into its second matrix.
- Updates that apply in late layers only are zero in the early ones.
- Blocks beyond a task's segment embeddings share its last one, so that one is repeated.
- What a task does not have is zero, which is a head, an adapter or an update that adds nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import M6Rec, initial_features
from m6rec_jax.model.prompts import COLLECTION

TASKS, PROMPTS = "tasks", "prompts"
_SOFT_PROMPTS = "bank/soft_prompts"
_KERNEL, _BIAS = "bank/head_kernel", "bank/head_bias"


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor of the collection `prompts`: its logical axes, 'tasks' among them, and shape."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def task_axis(self) -> int:
        """Where the axis of tasks is: after that of layers."""
        return self.axes.index(TASKS)

    def of_task(self) -> Leaf:
        """One task's part: without the axis of tasks."""
        axis = self.task_axis
        return Leaf(
            self.axes[:axis] + self.axes[axis + 1 :], self.shape[:axis] + self.shape[axis + 1 :]
        )

    def places(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where less of it stands, of that shape: soft prompts last, all else first."""
        return tuple(
            slice(length - own, length) if axis == PROMPTS else slice(0, own)
            for axis, length, own in zip(self.axes, self.shape, shape, strict=True)
        )


@functools.lru_cache(maxsize=64)
def prompt_leaves(config: ModelConfig) -> Mapping[str, Leaf]:
    """`{name: leaf}` of a model's prompts; nothing is computed."""
    boxed = jax.eval_shape(M6Rec(config).init, jax.random.key(0), initial_features())

    def leaf(box: Any) -> Leaf:
        return Leaf(tuple(box.names), tuple(box.value.shape))

    is_box = lambda node: isinstance(node, nn.meta.Partitioned)  # noqa: E731
    return flatten(jax.tree.map(leaf, boxed.get(COLLECTION, {}), is_leaf=is_box))


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
    same = _in_terms_of_the_bank(dict(tensors), task, bank)
    row = {}
    for name, leaf in prompt_leaves(bank).items():
        part = leaf.of_task()
        values = same.pop(name, None)
        if values is None:
            row[name] = np.zeros(part.shape, np.float32)
            continue
        places = zip(part.places(values.shape), part.shape, strict=True)
        widths = [(place.start, length - place.stop) for place, length in places]
        mode = "edge" if "segments" in part.axes else "constant"
        row[name] = np.pad(values, widths, mode=mode)  # type: ignore[call-overload]
    assert not same, f"no room for {sorted(same)}"
    return row


def _in_terms_of_the_bank(
    tensors: dict[str, np.ndarray], task: ModelConfig, bank: ModelConfig
) -> dict[str, np.ndarray]:
    own, room = task.prompts, bank.prompts
    if own.head == "option":
        options = tensors[_SOFT_PROMPTS][-own.num_options :]
        tensors[_KERNEL] = options.T
        tensors[_BIAS] = np.zeros(own.num_options, np.float32)
    if own.special_token_ids:
        deltas = tensors["bank/special_token_deltas"]
        spread = np.zeros((len(room.special_token_ids), task.embed_dim), np.float32)
        spread[[room.special_token_ids.index(i) for i in own.special_token_ids]] = deltas
        tensors["bank/special_token_deltas"] = spread
    early = {"encoder": task.late_layers_start, "decoder": task.first_cross_layer}
    for name in tensors:
        tower, *parts = name.split("/")
        is_update = len(parts) > 1 and parts[-2].startswith("lora_") and parts[-1] == "b"
        is_adapter = len(parts) > 1 and parts[-2] == "adapter" and parts[-1] in ("wo", "wo_bias")
        if is_update:
            tensors[name] = tensors[name] * np.float32(own.lora_scale / room.lora_scale)
        if (is_update or is_adapter) and own.adapters_late_only and not room.adapters_late_only:
            tensors[name] = tensors[name].copy()
            tensors[name][: early[tower]] = 0.0
    return tensors
