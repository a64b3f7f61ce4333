"""LoRA: updates of low rank to the projections of attentions (Hu et al., 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.prompts import prompt_variable, task_dot, within_ranks
from m6rec_jax.model.tuning.method import Array, Method, Site, names, size, sizes_of

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

TARGETS = ("query", "key", "value", "out")


@dataclasses.dataclass(frozen=True)
class Settings:
    """LoRA, in self and cross attention alike.

    Attributes:
      lora_rank: r of the updates W + lora_scale · A B (0: none).
      lora_scale: the factor itself, alpha / r in the paper. It does not depend on r here, so a task
        of a smaller rank keeps its scale in a bank.
      lora_targets: the updated projections.
      task_lora_ranks: r of each task; empty: all have `lora_rank`.
    """

    lora_rank: int = size()
    lora_scale: float = 1.0
    lora_targets: tuple[str, ...] = names(("query", "value"), TARGETS)
    task_lora_ranks: tuple[int, ...] = sizes_of("lora_rank", least=1)


class LowRankUpdate(nn.Module):
    """y + scale · (x A) B, one per layer and task: scale · A B added to the site's kernel.

    B starts at zero, so a new task starts from the backbone exactly.
    """

    config: Any
    site: Site

    @nn.compact
    def __call__(self, x: Array, y: Array, task_ids: Array) -> Array:
        """x `[batch, length, in dims]`, y `[batch, length, out dims]`, task_ids `[batch]`."""
        config, prompts, site = self.config, self.config.prompts, self.site
        tasks, rank, num_in = prompts.num_tasks, prompts.lora_rank, len(site.in_shape)
        init = nn.initializers.normal(math.prod(site.in_shape) ** -0.5)
        init = within_ranks(init, prompts.task_lora_ranks)
        zeros = nn.initializers.zeros_init()
        inward, outward = site.axes[:num_in], site.axes[num_in:]
        a = prompt_variable(self, tasks, "a", init, (*site.in_shape, rank), (*inward, "rank"))
        b = prompt_variable(self, tasks, "b", zeros, (rank, *site.out_shape), ("rank", *outward))
        hidden = task_dot(x, a, task_ids, operand_dtype=config.operand_dtype, num_contracted=num_in)
        out = task_dot(hidden, b, task_ids, operand_dtype=config.operand_dtype)
        return y + (out * prompts.lora_scale).astype(config.dtype)


class Lora(Method):
    name, order, settings = "lora", 20, Settings
    groups: ClassVar = {"lora_": "LoRA"}
    meanings = ("lora_scale",)
    switches = ("b",)

    def used(self, prompts: PromptConfig) -> bool:
        return prompts.lora_rank > 0

    def check(self, prompts: PromptConfig) -> None:
        if prompts.lora_rank and not prompts.lora_targets:
            raise ConfigError(
                f"PromptConfig.lora_rank = {prompts.lora_rank}, but lora_targets is empty; usual "
                "are ('query', 'value')"
            )

    def sites(self, prompts: PromptConfig) -> Sequence[str]:
        return prompts.lora_targets if prompts.lora_rank else ()

    def change(self, config: ModelConfig, site: Site) -> nn.Module:
        return LowRankUpdate(config, site, name=f"lora_{site.name}")

    def site_products(self, config: ModelConfig, site: Site) -> int:
        return config.prompts.lora_rank * (math.prod(site.in_shape) + math.prod(site.out_shape))

    def for_bank(
        self, tensors: dict[str, np.ndarray], task: ModelConfig, bank: ModelConfig
    ) -> Mapping[str, np.ndarray]:
        """The scale goes into the second matrix."""
        factor = np.float32(task.prompts.lora_scale / bank.prompts.lora_scale)
        return {
            name: values * factor
            for name, values in tensors.items()
            if self.owns(name) and name.endswith("/b")
        }
