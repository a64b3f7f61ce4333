"""Token embedding, shared by both towers, and the vocabulary logits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dense import Projection, Site, dot, materialised_on_cpu
from m6rec_jax.model.quantization import scale_of

Array = jax.Array

_LOOKED_UP = ("lookup_batch", "length", "embed")


class TokenEmbedding(nn.Module):
    """The table `[vocab, embed]`; factorised, `[vocab, rank]` and a projection `[rank, embed]`."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        width = "embed" if config.embedding_rank is None else "rank"
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(config.embedding_stddev), ("vocab", width)
            ),
            (config.vocab_size, config.embedding_width),
            jnp.float32,
        )
        self.scale = scale_of(self, "embedding")
        if config.embedding_rank is not None:
            self.projection = self.param(
                "projection",
                nn.with_logical_partitioning(
                    nn.initializers.normal(config.embedding_rank**-0.5), ("rank", "embed")
                ),
                (config.embedding_rank, config.embed_dim),
                jnp.float32,
            )
            self.projection_scale = scale_of(self, "projection")

    def __call__(self, tokens: Array) -> Array:
        """Vectors of `tokens` `[batch, length]` → `[batch, length, embed]`, float32."""
        rows = self.rows(tokens)
        if self.config.embedding_rank is None:
            return rows
        out = dot(rows, self.projection, operand_dtype=self.config.operand_dtype)
        return out if self.projection_scale is None else out * self.projection_scale[0]

    def rows(self, tokens: Array) -> Array:
        """Rows of the table, `[batch, length]` → `[batch, length, embed or rank]`, float32.

        Where the table is split along `embed` over devices that also share the batch, each of them
        looks up its part of every vector for all of their rows; parts and rows change places
        afterwards. Left to itself XLA may copy the result, or its gradient, to every device.
        """
        tokens = nn.with_logical_constraint(tokens, _LOOKED_UP[:2])
        rows = jnp.take(self.embedding, tokens, axis=0)
        if self.scale is not None:
            rows = rows * jnp.take(self.scale, tokens, axis=0)
        if self.config.embedding_rank is not None:
            return rows
        return nn.with_logical_constraint(rows, _LOOKED_UP)

    def to_rank(self, hidden: Array) -> Array:
        """hidden `[..., embed]` · projectionᵀ → `[..., rank]`, float32 (tied head)."""
        if self.projection_scale is not None:
            hidden = hidden * self.projection_scale[0]
        matrix = materialised_on_cpu(self.projection.T)
        return dot(hidden, matrix, operand_dtype=self.config.operand_dtype)

    def logits(self, hidden: Array) -> Array:
        """hidden `[..., embed]` · table / sqrt(embed) → `[..., vocab]`, float32 (tied head).

        A factorised table takes what `to_rank` made, `[..., rank]`.
        """
        config = self.config
        # Made, not folded into the products: see `materialised_on_cpu`.
        table = materialised_on_cpu(self.embedding.T)
        logits = dot(hidden, table, operand_dtype=config.operand_dtype)
        if self.scale is not None:
            logits = logits * self.scale[:, 0]
        return logits * config.embed_dim**-0.5


def logits_head(config: ModelConfig) -> Projection:
    """T5 1.1's own output matrix: `[..., embed]` (or rank) → `[..., vocab]`, float32."""
    width, name = config.embedding_width, "embed" if config.embedding_rank is None else "rank"
    site = Site("logits", (width,), (config.vocab_size,), (name, "vocab"))
    return Projection(config, site, width**-0.5, "float32")


def logits_head_projection(config: ModelConfig) -> Projection:
    """What comes before a factorised output matrix: `[..., embed]` → `[..., rank]`, float32."""
    site = Site("logits", (config.embed_dim,), (config.embedding_width,), ("embed", "rank"))
    return Projection(config, site, config.embed_dim**-0.5, "float32")


def input_vectors(params: Mapping[str, Any], tokens: np.ndarray) -> Array:
    """The backbone's embeddings of tokens `[...]` → `[..., embed]`, as the parameters have them."""
    embedder = params["token_embedder"]
    rows = embedder["embedding"][tokens]
    return _times(rows, embedder["projection"]) if "projection" in embedder else rows


def output_vectors(params: Mapping[str, Any], tokens: np.ndarray) -> Array:
    """Vectors whose products with a state are the logits of tokens `[n]`: `[n, embed]`.

    Logits of a tied head are those products times embed^-0.5.
    """
    if "logits_head" not in params:
        return input_vectors(params, tokens)
    columns = params["logits_head"]["kernel"][:, tokens].T
    if "logits_head_projection" in params:
        columns = _times(columns, params["logits_head_projection"]["kernel"].T)
    return columns


def _times(rows: Array, matrix: Array) -> Array:
    return jnp.matmul(rows, matrix, precision="highest")
