"""Multi-head attention as in T5: no biases, no 1/sqrt(head_dim) scale, softmax in float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dense import Projection, einsum
from m6rec_jax.model.dropout import dropout

Array = jax.Array

# Large enough to vanish in any softmax, small enough to survive sums in float32. A row with no
# visible key at all (padding) then attends evenly instead of giving NaN.
MASKED = -1e9


def mask_bias(mask: Array) -> Array:
    """Boolean mask (True: visible) → additive float32 bias of the same shape."""
    return jnp.where(mask, 0.0, MASKED).astype(jnp.float32)


class Attention(nn.Module):
    """Queries from one sequence, keys and values from the same or another one."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        shape = (config.num_heads, config.head_dim)
        axes = ("embed", "heads", "kv")

        def inward(stddev: float) -> Projection:
            return Projection(
                in_shape=(config.embed_dim,),
                out_shape=shape,
                axes=axes,
                stddev=stddev,
                operand_dtype=config.operand_dtype,
                out_dtype=config.dtype,
            )

        # T5 has no 1/sqrt(head_dim) in the attention; its effect sits in the queries' start.
        self.query = inward((config.embed_dim * config.head_dim) ** -0.5)
        self.key = inward(config.embed_dim**-0.5)
        self.value = inward(config.embed_dim**-0.5)
        self.out = Projection(
            in_shape=shape,
            out_shape=(config.embed_dim,),
            axes=("heads", "kv", "embed"),
            stddev=(config.num_heads * config.head_dim) ** -0.5,
            operand_dtype=config.operand_dtype,
            out_dtype=config.dtype,
        )
        self.dropout = dropout(config)

    def __call__(
        self, inputs: Array, source: Array, biases: Sequence[Array], *, deterministic: bool
    ) -> Array:
        """Attend from `inputs` to `source`.

        Args:
          inputs: `[batch, query, embed]`, already normalised.
          source: `[batch, key, embed]`.
          biases: float32 arrays added to the scores, each broadcastable to
            `[batch, heads, query, key]` (position bias, mask).
          deterministic: no dropout.

        Returns:
          `[batch, query, embed]`.
        """
        operand_dtype = self.config.operand_dtype
        names = ("batch", "length", "heads", "kv")
        query = nn.with_logical_constraint(self.query(inputs), names)
        key = nn.with_logical_constraint(self.key(source), names)
        value = nn.with_logical_constraint(self.value(source), names)
        scores = einsum("bqhd,bkhd->bhqk", query, key, operand_dtype=operand_dtype)
        for bias in biases:
            scores = scores + bias
        weights = jax.nn.softmax(scores, axis=-1)
        weights = self.dropout(weights, deterministic=deterministic)
        mixed = einsum(
            "bhqk,bkhd->bqhd",
            weights,
            value,
            operand_dtype=operand_dtype,
            out_dtype=self.config.dtype,
        )
        return self.out(mixed)
