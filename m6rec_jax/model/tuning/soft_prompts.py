"""Soft prompts in front of the encoder's input (Lester et al., 2021), options among them.

With `PromptConfig.head` 'option' the last ones are also the rows of the softmax layer: option
tuning (paper, section 3). `heads.py` has the scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.model.prompts import Variable, task_rows
from m6rec_jax.model.tuning.method import Array, Method, Tensors, size, sizes_of

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

SOFT_PROMPTS = "soft_prompts"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Soft prompts.

    Attributes:
      num_prompts: P, soft prompts in front of the encoder input, options included (0: none).
      init_stddev: standard deviation of soft prompts, and of a linear head, at the start.
      task_num_prompts: P of each task; empty: all have `num_prompts`.
    """

    num_prompts: int = size()
    init_stddev: float = 0.5
    task_num_prompts: tuple[int, ...] = sizes_of("num_prompts")


class SoftPrompts(Method):
    """Called 'option' where they are the softmax layer's rows, else 'prompt'."""

    name, order, settings = "prompt", 0, Settings
    groups: ClassVar = {SOFT_PROMPTS: "soft prompts"}

    def used(self, prompts: PromptConfig) -> bool:
        return prompts.num_prompts > 0

    def label(self, prompts: PromptConfig) -> str:
        return "option" if prompts.head == "option" else "prompt"

    def variables(self, config: ModelConfig) -> Mapping[str, Variable]:
        prompts = config.prompts
        if not prompts.num_prompts:
            return {}
        shape, axes = (prompts.num_prompts, config.embed_dim), ("prompts", "embed")
        return {SOFT_PROMPTS: Variable(nn.initializers.normal(prompts.init_stddev), shape, axes)}

    def for_bank(
        self, tensors: dict[str, np.ndarray], task: ModelConfig, bank: ModelConfig
    ) -> Mapping[str, np.ndarray]:
        """Options are the kernel of a linear head: hidden · P / sqrt(D) = hidden Pᵀ / sqrt(D)."""
        own = task.prompts
        if own.head != "option":
            return {}
        options = tensors[f"bank/{SOFT_PROMPTS}"][-own.num_options :]
        bias = np.zeros(own.num_options, np.float32)
        return {"bank/head_kernel": options.T, "bank/head_bias": bias}


def prompt_embeddings(config: ModelConfig, tensors: Tensors, task_ids: Array) -> Array:
    """Soft prompts of each example, `[batch, prompts, embed]`; without any of length 0."""
    batch = task_ids.shape[0]
    if not config.prompts.num_prompts:
        return jnp.zeros((batch, 0, config.embed_dim), config.dtype)
    rows = task_rows(tensors[SOFT_PROMPTS], task_ids)
    return jnp.broadcast_to(rows, (batch, *rows.shape[1:])).astype(config.dtype)
