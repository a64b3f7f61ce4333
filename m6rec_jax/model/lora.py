"""LoRA: a task's update of low rank to a projection of the attention."""

import math

import jax
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.prompts import prompt_variable, task_dot, within_ranks

Array = jax.Array


class LowRankUpdate(nn.Module):
    """scale · (Z A) B beside one projection, one per layer and task.

    The same as adding scale · A B to the kernel of the projection. B starts at zero, so a new task
    starts from the backbone exactly.

    Attributes:
      config: sizes, rank and scale.
      in_shape, out_shape: of the projection.
      axes: logical axis names of the projection's kernel, `in_shape` first.
    """

    config: ModelConfig
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Array, task_ids: Array) -> Array:
        """x `[batch, length, in dims]`, task_ids `[batch]` → `[batch, length, out dims]`."""
        config, prompts = self.config, self.config.prompts
        tasks, rank, num_in = prompts.num_tasks, prompts.lora_rank, len(self.in_shape)
        a = prompt_variable(
            self,
            "a",
            within_ranks(
                nn.initializers.normal(math.prod(self.in_shape) ** -0.5), prompts.task_lora_ranks
            ),
            (tasks, *self.in_shape, rank),
            ("tasks", *self.axes[:num_in], "rank"),
        )
        b = prompt_variable(
            self,
            "b",
            nn.initializers.zeros_init(),
            (tasks, rank, *self.out_shape),
            ("tasks", "rank", *self.axes[num_in:]),
        )
        hidden = task_dot(x, a, task_ids, operand_dtype=config.operand_dtype, num_contracted=num_in)
        out = task_dot(hidden, b, task_ids, operand_dtype=config.operand_dtype)
        return (out * prompts.lora_scale).astype(config.dtype)
