"""T5's relative position bias: one learned number per head and bucket of distance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig


def relative_position_bucket(
    relative_position: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each distance key position - query position.

    Half of the buckets of a direction hold one distance each, from 0; the other half grow
    logarithmically up to `max_distance`, beyond which all share the last one. Bidirectional: the
    upper half of the buckets is for keys after the query. Otherwise keys after the query share
    bucket 0 (the causal mask hides them).

    Args:
      relative_position: integers of any shape.

    Returns:
      int32 of the same shape, in [0, num_buckets).
    """
    distance = np.asarray(relative_position, np.int64)
    offset = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distance > 0, num_buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    num_exact = num_buckets // 2
    # 1e-6 keeps exact powers (distance 16, 32, 64) out of the bucket below when log rounds down.
    growth = np.log(np.maximum(distance, num_exact) / num_exact) / math.log(
        max_distance / num_exact
    )
    logarithmic = num_exact + np.floor(growth * (num_buckets - num_exact) + 1e-6).astype(np.int64)
    bucket = np.where(distance < num_exact, distance, np.minimum(logarithmic, num_buckets - 1))
    return (bucket + offset).astype(np.int32)


def spread_by_distance(values: jax.Array, query_length: int, key_length: int) -> jax.Array:
    """From one value per distance to one per pair: `[heads, Q + K - 1]` → `[heads, Q, K]`.

    Entry [h, q, k] is values[h, k - q + Q - 1]. Row q starts Q - 1 - q to the right, and is moved
    there one binary digit of that number at a time: every step doubles the rows, half of them moved
    by a power of two. So there is no gather forward and, what matters, no scatter backward. Reading
    Q copies with a row length one short, the usual way, has neither, but its one reshape across
    tiles is by far the longest program that XLA's TPU compiler then has to write.
    """
    num_heads, width = values.shape
    steps = (query_length - 1).bit_length()
    rows = jnp.pad(values, ((0, 0), (2**steps - query_length, 0)))[:, None]
    for step in reversed(range(steps)):
        shift = 2**step
        moved = jnp.stack([rows[..., shift:], rows[..., :-shift]], axis=2)
        rows = moved.reshape(num_heads, 2 * rows.shape[1], rows.shape[2] - shift)
    assert rows.shape[2] == key_length == width - query_length + 1
    return rows[:, :query_length]


class RelativeBias(nn.Module):
    """The table of one tower (or of one layer, with `per_layer_relative_bias`)."""

    config: ModelConfig
    bidirectional: bool

    @nn.compact
    def __call__(
        self, query_length: int, key_length: int, column: jax.Array | None = None
    ) -> jax.Array:
        """Bias `[1, heads, query_length, key_length]`, float32.

        Args:
          query_length, key_length: both sequences start at position 0.
          column: int32 scalar below key_length, where the only query stands instead, in a cache
            that goes round: the key in column c is (column - c) mod key_length positions behind.
            May be known only at run time, as in a loop over positions; query_length must be 1.
        """
        config = self.config
        table = self.param(
            "embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(config.embed_dim**-0.5), ("relpos_buckets", "heads")
            ),
            (config.relative_attention_num_buckets, config.num_heads),
            jnp.float32,
        )
        # A query at a column known later may have as many keys behind it as there are.
        behind = (query_length if column is None else key_length) - 1
        distance = np.arange(behind + key_length) - behind
        bucket = relative_position_bucket(
            distance if column is None else -(-distance % key_length),
            bidirectional=self.bidirectional,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        by_distance = jnp.take(table, bucket, axis=0).T
        if column is None:
            return spread_by_distance(by_distance, query_length, key_length)[None]
        assert query_length == 1
        first = behind - column
        return jax.lax.dynamic_slice_in_dim(by_distance, first, key_length, axis=1)[None, :, None]
