"""An update of low rank to the token embedding that both towers read; not in the paper.

It can tell classes apart where the frozen vectors of words do not. Vocabulary logits keep the
backbone's embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.prompts import EXACT, Variable, task_dot
from m6rec_jax.model.tuning.method import Array, Method, Tensors, size

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

_A, _B = "embedding_update_a", "embedding_update_b"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The embedding update.

    Attributes:
      embedding_rank: r of the updates E + A B (0: none). A, a row for each token, starts at zero.
        The early layers then depend on the task in every block, which `adapters_late_only` rules
        out. All tasks of a run have one rank.
    """

    embedding_rank: int = size()


class EmbeddingUpdate(Method):
    name, order, settings = "embedding", 30, Settings
    groups: ClassVar = {"embedding_update": "embedding updates"}
    towers = ("encoder", "decoder")
    in_early_layers = True

    def used(self, prompts: PromptConfig) -> bool:
        return prompts.embedding_rank > 0

    def variables(self, config: ModelConfig) -> Mapping[str, Variable]:
        rank = config.prompts.embedding_rank
        if not rank:
            return {}
        # B is as large as the vectors that it is added to: A says by how much of them.
        like_embedding = nn.initializers.normal(config.embedding_stddev)
        zeros = nn.initializers.zeros_init()
        return {
            _A: Variable(zeros, (config.vocab_size, rank), ("vocab", "rank")),
            _B: Variable(like_embedding, (rank, config.embed_dim), ("rank", "embed")),
        }

    def embedding(
        self, config: ModelConfig, tensors: Tensors, tokens: Array, task_ids: Array
    ) -> Array | None:
        """Rows of A B."""
        if not config.prompts.embedding_rank:
            return None
        a = tensors[_A]
        one = a.shape[0] == 1
        rows = jnp.take(a[0], tokens, axis=0) if one else a[task_ids[:, None], tokens]
        return task_dot(rows, tensors[_B], task_ids, **EXACT)

    def token_products(self, config: ModelConfig) -> int:
        return config.embed_dim * config.prompts.embedding_rank
