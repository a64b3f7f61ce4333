"""Adapters parallel to each feed-forward layer (paper, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from flax import linen as nn

from m6rec_jax.model.dense import ACTIVATIONS
from m6rec_jax.model.prompts import prompt_variable, task_dot, task_rows, within_ranks
from m6rec_jax.model.tuning.method import Array, Method, Site, choice, size, sizes_of

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """Adapters.

    Attributes:
      adapter_rank: r, width between the adapter's two matrices (0: none).
      adapter_activation: σ between them.
      adapter_scale: λ at the start; it trains.
      task_adapter_ranks: r of each task; empty: all have `adapter_rank`.
    """

    adapter_rank: int = size()
    adapter_activation: str = choice("gelu", tuple(ACTIVATIONS), one_per_bank=True)
    adapter_scale: float = 1.0
    # At rank 0 the last bias would still train, and belong to nothing.
    task_adapter_ranks: tuple[int, ...] = sizes_of("adapter_rank", least=1)


class AdapterModule(nn.Module):
    """y + λ·(σ(x W1 + b1) W2 + b2), one per layer and task.

    W2 and b2 start at zero, so a new task starts from the backbone exactly.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Array, y: Array, task_ids: Array) -> Array:
        """x and y `[batch, length, embed]`, task_ids `[batch]` → `[batch, length, embed]`."""
        config, prompts = self.config, self.config.prompts
        embed, rank = config.embed_dim, prompts.adapter_rank
        zeros = nn.initializers.zeros_init()
        w1 = within_ranks(nn.initializers.normal(embed**-0.5), prompts.task_adapter_ranks)

        def variable(name: str, init: Any, **dims: int) -> Array:
            return prompt_variable(
                self, prompts.num_tasks, name, init, tuple(dims.values()), tuple(dims)
            )

        wi = variable("wi", w1, embed=embed, rank=rank)
        wi_bias = variable("wi_bias", zeros, rank=rank)
        wo = variable("wo", zeros, rank=rank, embed=embed)
        wo_bias = variable("wo_bias", zeros, embed=embed)
        scale = variable("scale", nn.initializers.constant(prompts.adapter_scale))
        hidden = task_dot(x, wi, task_ids, operand_dtype=config.operand_dtype)
        hidden = ACTIVATIONS[prompts.adapter_activation](
            hidden + task_rows(wi_bias, task_ids)[:, None]
        )
        out = task_dot(hidden, wo, task_ids, operand_dtype=config.operand_dtype)
        out = out + task_rows(wo_bias, task_ids)[:, None]
        return y + (out * task_rows(scale, task_ids)[:, None, None]).astype(config.dtype)


class Adapter(Method):
    name, order, settings = "adapter", 10, Settings
    groups: ClassVar = {"adapter": "adapters"}
    meanings = ("adapter_activation",)
    switches = ("wo", "wo_bias")

    def used(self, prompts: PromptConfig) -> bool:
        return prompts.adapter_rank > 0

    def sites(self, prompts: PromptConfig) -> Sequence[str]:
        return ("mlp",) if prompts.adapter_rank else ()

    def change(self, config: ModelConfig, site: Site) -> nn.Module:
        return AdapterModule(config, name="adapter")

    def site_products(self, config: ModelConfig, site: Site) -> int:
        return 2 * config.embed_dim * config.prompts.adapter_rank
