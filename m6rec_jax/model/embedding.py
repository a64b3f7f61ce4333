"""Token embedding, shared by both towers, and the vocabulary logits."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dense import Projection, Site, dot, materialised_on_cpu

Array = jax.Array

_LOOKED_UP = ("lookup_batch", "length", "embed")


class TokenEmbedding(nn.Module):
    """The table `[vocab, embed]`."""

    config: ModelConfig

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(self.config.embedding_stddev), ("vocab", "embed")
            ),
            (self.config.vocab_size, self.config.embed_dim),
            jnp.float32,
        )

    def __call__(self, tokens: Array) -> Array:
        """Rows of `tokens` `[batch, length]` → `[batch, length, embed]`, float32.

        Where the table is split along `embed` over devices that also share the batch, each of them
        looks up its part of every vector for all of their rows; parts and rows change places
        afterwards. Left to itself XLA may copy the result, or its gradient, to every device.
        """
        tokens = nn.with_logical_constraint(tokens, _LOOKED_UP[:2])
        return nn.with_logical_constraint(jnp.take(self.embedding, tokens, axis=0), _LOOKED_UP)

    def logits(self, hidden: Array) -> Array:
        """hidden `[..., embed]` · table / sqrt(embed) → `[..., vocab]`, float32 (tied head)."""
        config = self.config
        # Made, not folded into the products: see `materialised_on_cpu`.
        table = materialised_on_cpu(self.embedding.T)
        logits = dot(hidden, table, operand_dtype=config.operand_dtype)
        return logits * config.embed_dim**-0.5


def logits_head(config: ModelConfig) -> Projection:
    """T5 1.1's own output matrix: `[..., embed]` → `[..., vocab]`, float32."""
    site = Site("logits", (config.embed_dim,), (config.vocab_size,), ("embed", "vocab"))
    return Projection(config, site, config.embed_dim**-0.5, "float32")
