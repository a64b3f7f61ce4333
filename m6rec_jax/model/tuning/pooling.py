"""Mean pooling of embeddings; not in the paper.

The mean of a candidate's token embeddings, through a map of low rank, is added to the embedding of
its `[EOS]`, by whose state a candidate is judged. In a small frozen backbone that state often tells
less of words than their embeddings do (docs/results.md, "What a frozen foundation knows of a
text"); what is added to an embedding reaches the last state through the residual stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.prompts import EXACT, Variable, task_dot
from m6rec_jax.model.tuning.method import Array, Method, Tensors, size
from m6rec_jax.text.vocabulary import EOS_ID

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

_A, _B = "pooling_a", "pooling_b"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Mean pooling of embeddings.

    Attributes:
      pooling_rank: r of the map A B that takes the mean to what is added (0: none). A starts at
        zero. What early layers make of a candidate then depends on the task, which
        `adapters_late_only` rules out. All tasks of a run have one rank.
    """

    pooling_rank: int = size()


class Pooling(Method):
    name, settings = "pooling", Settings
    groups: ClassVar = {"pooling": "pooling"}
    towers = ("decoder",)
    in_early_layers = True

    def used(self, prompts: PromptConfig) -> bool:
        return prompts.pooling_rank > 0

    def variables(self, config: ModelConfig) -> Mapping[str, Variable]:
        rank = config.prompts.pooling_rank
        if not rank:
            return {}
        # B is as large as the vectors that it is added to: A says by how much of them.
        like_embedding = nn.initializers.normal(config.embedding_stddev)
        zeros = nn.initializers.zeros_init()
        return {
            _A: Variable(zeros, (config.embed_dim, rank), ("embed", "rank")),
            _B: Variable(like_embedding, (rank, config.embed_dim), ("rank", "embed")),
        }

    def candidate_embedding(
        self,
        config: ModelConfig,
        tensors: Tensors,
        tokens: Array,
        vectors: Array,
        mask: Array,
        task_ids: Array,
    ) -> Array | None:
        """Means through A B at `[EOS]`, zero elsewhere."""
        if not config.prompts.pooling_rank:
            return None
        # The mean of what A makes of vectors is what it makes of their mean, and narrower.
        in_rank = task_dot(vectors, tensors[_A], task_ids, **EXACT)
        seen = mask.astype(jnp.float32)
        sums = jnp.einsum("bls,bsr->blr", seen, in_rank, precision="highest")
        means = sums / jnp.maximum(seen.sum(axis=-1, keepdims=True), 1.0)
        added = task_dot(means, tensors[_B], task_ids, **EXACT)
        return jnp.where((tokens == EOS_ID)[..., None], added, 0.0)

    def candidate_products(self, config: ModelConfig) -> int:
        return 2 * config.embed_dim * config.prompts.pooling_rank

    def pair_products(self, config: ModelConfig) -> int:
        return config.prompts.pooling_rank
