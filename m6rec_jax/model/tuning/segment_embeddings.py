"""Segment embeddings between the early and the late encoder layers (paper, section 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.model.prompts import EXACT, Variable, task_dot
from m6rec_jax.model.tuning.method import Array, Method, Tensors, size

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

_SEGMENTS = "segment_embedding"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Segment embeddings.

    Attributes:
      num_segment_embeddings: rows added by min(block id, rows - 1), zero at the start, in use only
        when late interaction is on (0: none).
    """

    num_segment_embeddings: int = size()


class SegmentEmbeddings(Method):
    order, settings = 50, Settings
    groups: ClassVar = {"segment": "segment embeddings"}

    def used(self, prompts: PromptConfig) -> bool:
        return prompts.num_segment_embeddings > 0

    def variables(self, config: ModelConfig) -> Mapping[str, Variable]:
        rows = config.prompts.num_segment_embeddings
        shape, axes = (rows, config.embed_dim), ("segments", "embed")
        return {_SEGMENTS: Variable(nn.initializers.zeros_init(), shape, axes)} if rows else {}

    def for_bank(
        self, tensors: dict[str, np.ndarray], task: ModelConfig, bank: ModelConfig
    ) -> Mapping[str, np.ndarray]:
        """Blocks beyond a task's rows share its last one, so that one is repeated."""
        name, room = f"bank/{_SEGMENTS}", bank.prompts.num_segment_embeddings
        own = task.prompts.num_segment_embeddings
        return {name: np.pad(tensors[name], ((0, room - own), (0, 0)), "edge")} if own else {}


def segment_embeddings(
    config: ModelConfig, tensors: Tensors, block_ids: Array, task_ids: Array
) -> Array | None:
    """Rows for block_ids `[batch, length]` (0: soft prompts), float32; None without any."""
    rows = config.prompts.num_segment_embeddings
    if not rows:
        return None
    hits = jax.nn.one_hot(jnp.clip(block_ids, 0, rows - 1), rows, dtype=jnp.float32)
    return task_dot(hits, tensors[_SEGMENTS], task_ids, **EXACT)
