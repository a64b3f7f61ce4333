"""What a task reads off the decoder: scores of its classes, and vectors for retrieval."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.prompts import EXACT, Variable, task_dot, task_rows
from m6rec_jax.model.tuning.method import Array, Method, Tensors, choice, size, sizes_of
from m6rec_jax.model.tuning.soft_prompts import SOFT_PROMPTS

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

KINDS = ("option", "linear", "none")
# Score of a class that a task does not have: exp of it is 0, yet 0 · it is not NaN.
NO_CLASS = -1e9


@dataclasses.dataclass(frozen=True)
class Settings:
    """Heads.

    Attributes:
      num_options: C, classes. The last C soft prompts are also the rows of the softmax layer when
        `head` is 'option', so then C <= P.
      head: 'option' (rows shared with the soft prompts), 'linear' (a matrix and bias of its own) or
        'none'.
      retrieval_dim: width of the two retrieval projections (0: none).
      task_num_options: C of each task, 0 for a task without classes; empty: all have `num_options`.
    """

    num_options: int = size()
    head: str = choice("none", KINDS)
    retrieval_dim: int = size()
    task_num_options: tuple[int, ...] = sizes_of("num_options")


class Heads(Method):
    order, settings = 60, Settings
    groups: ClassVar = {"projection": "projections", "head_": "task head"}

    def used(self, prompts: PromptConfig) -> bool:
        return prompts.head != "none" or prompts.retrieval_dim > 0

    def check(self, prompts: PromptConfig) -> None:
        if prompts.head != "none" and prompts.num_options < 2:
            raise ConfigError(
                f"PromptConfig.head = {prompts.head!r} needs PromptConfig.num_options >= 2, "
                f"got {prompts.num_options}"
            )
        if prompts.head == "option" and prompts.num_options > prompts.num_prompts:
            raise ConfigError(
                f"PromptConfig.num_options = {prompts.num_options} exceeds num_prompts = "
                f"{prompts.num_prompts}: the options are the last soft prompts. Raise num_prompts "
                "or set PromptConfig.head = 'linear'"
            )
        if 1 in prompts.task_num_options:
            raise ConfigError(
                f"PromptConfig.task_num_options = {prompts.task_num_options}: one class alone is "
                "nothing to choose from; 0 says that a task has none"
            )
        sizes = prompts.task_sizes
        pairs = zip(sizes["task_num_prompts"], sizes["task_num_options"], strict=True)
        for task, (num_prompts, num_options) in enumerate(pairs):
            if prompts.head == "option" and num_options > num_prompts:
                raise ConfigError(
                    f"task {task} of PromptConfig has {num_options} options (task_num_options) but "
                    f"{num_prompts} soft prompts (task_num_prompts), the last of which the options "
                    "are"
                )

    def variables(self, config: ModelConfig) -> Mapping[str, Variable]:
        prompts, embed = config.prompts, config.embed_dim
        found = {}
        if prompts.head == "linear":
            like_prompts = nn.initializers.normal(prompts.init_stddev)
            zeros, classes = nn.initializers.zeros_init(), prompts.num_options
            found["head_kernel"] = Variable(like_prompts, (embed, classes), ("embed", "classes"))
            found["head_bias"] = Variable(zeros, (classes,), ("classes",))
        if prompts.retrieval_dim:
            by_width = nn.initializers.normal(embed**-0.5)
            projection = Variable(by_width, (embed, prompts.retrieval_dim), ("embed", "retrieval"))
            found |= {"user_projection": projection, "item_projection": projection}
        return found


def class_logits(config: ModelConfig, tensors: Tensors, hidden: Array, task_ids: Array) -> Array:
    """Scores of all classes, `[batch, length, embed]` → `[batch, length, classes]`, float32.

    'option': hidden · (the last soft prompts) / sqrt(embed). The scale keeps the first logits near
    the soft prompts' own size, whatever the width. 'linear': hidden W / sqrt(embed) + b.
    """
    if config.prompts.head == "linear":
        logits = task_dot(hidden, tensors["head_kernel"], task_ids, **EXACT)
        logits = logits * config.embed_dim**-0.5
        return logits + task_rows(tensors["head_bias"], task_ids)[:, None]
    options = tensors[SOFT_PROMPTS][:, -config.prompts.num_options :].transpose(0, 2, 1)
    return task_dot(hidden, options, task_ids, **EXACT) * config.embed_dim**-0.5


def of_own_classes(config: ModelConfig, logits: Array, num_options: Array) -> Array:
    """Logits `[batch, length, classes]` of num_options `[batch]` classes first, -1e9 behind them.

    A task's options are the last ones of the capacity, its columns of a linear head the first.
    """
    capacity = config.prompts.num_options
    shift = 0 if config.prompts.head == "linear" else 1
    classes, count = jnp.arange(capacity), num_options[:, None]
    column = jnp.minimum(classes + shift * (capacity - count), capacity - 1)
    logits = jnp.take_along_axis(logits, column[:, None], axis=-1)
    return jnp.where((classes < count)[:, None], logits, NO_CLASS)


def project(kernel: Array, hidden: Array, task_ids: Array) -> Array:
    """`[batch, length, embed]` → `[batch, length, retrieval]` of unit length, float32."""
    x = task_dot(hidden, kernel, task_ids, **EXACT)
    # The small term inside the root keeps the gradient finite for an all-zero (padding) row.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
