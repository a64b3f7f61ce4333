"""(IA)³: learnt vectors that scale keys, values and feed-forward activations (Liu et al., 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from flax import linen as nn

from m6rec_jax.model.prompts import prompt_variable, task_rows
from m6rec_jax.model.tuning.method import Array, Method, Site, names

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """(IA)³, in self and cross attention alike.

    Attributes:
      ia3_targets: what is scaled, all three in the paper: 'key', 'value' (of attentions), 'hidden',
        the activations of feed-forward layers. Empty: nothing.
    """

    ia3_targets: tuple[str, ...] = names((), ("key", "value", "hidden"))


class Scale(nn.Module):
    """factors · y, one vector per layer and task. It starts at one: as the backbone."""

    config: Any
    site: Site

    @nn.compact
    def __call__(self, x: Array, y: Array, task_ids: Array) -> Array:
        """y `[batch, length, *out dims]`, task_ids `[batch]` → as y."""
        shape, axes = self.site.out_shape, self.site.axes[len(self.site.in_shape) :]
        ones, tasks = nn.initializers.ones_init(), self.config.prompts.num_tasks
        factors = prompt_variable(self, tasks, "factors", ones, shape, axes)
        return y * task_rows(factors, task_ids)[:, None].astype(y.dtype)


class IA3(Method):
    name, settings = "ia3", Settings
    groups: ClassVar = {"ia3_": "(IA)³ vectors"}
    neutral = 1.0
    switches = ("factors",)

    def used(self, prompts: PromptConfig) -> bool:
        return bool(self.sites(prompts))

    def sites(self, prompts: PromptConfig) -> Sequence[str]:
        assert isinstance(prompts, Settings)
        return prompts.ia3_targets

    def change(self, config: ModelConfig, site: Site) -> nn.Module:
        return Scale(config, site, name=f"ia3_{site.name}")
