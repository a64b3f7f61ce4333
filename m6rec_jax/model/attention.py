"""Multi-head attention as in T5: no biases, no 1/sqrt(head_dim) scale, softmax in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dense import Projection
from m6rec_jax.model.dot_product_attention import dot_product_attention
from m6rec_jax.model.plain_attention import cached_attention
from m6rec_jax.model.tuning import apply, changes
from m6rec_jax.model.tuning.method import attention_sites

Array = jax.Array

_HEADS = ("batch", "length", "heads", "kv")

# Large enough to vanish in any softmax, small enough to survive sums in float32. A row with no
# visible key at all (padding) then attends evenly instead of giving NaN.
MASKED = -1e9


def mask_bias(mask: Array) -> Array:
    """Boolean mask (True: visible) → additive float32 bias of the same shape."""
    return jnp.where(mask, 0.0, MASKED).astype(jnp.float32)


class KeyValue(NamedTuple):
    """A sequence as attention sees it, each `[..., batch, heads, key, head_dim]`.

    Heads come first: products read a cache as it lies, without a transposed copy at every step.
    """

    key: Array
    value: Array


class Attention(nn.Module):
    """Queries from one sequence, keys and values from the same or another one."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        # T5 has no 1/sqrt(head_dim) in the attention; its effect sits in the queries' start.
        stddevs = {
            "query": (config.embed_dim * config.head_dim) ** -0.5,
            "key": config.embed_dim**-0.5,
            "value": config.embed_dim**-0.5,
            "out": (config.num_heads * config.head_dim) ** -0.5,
        }
        sites = attention_sites(config)
        self.projections = {
            name: Projection(config, site, stddevs[name], name=name) for name, site in sites.items()
        }
        self.changes = {name: changes(config, site) for name, site in sites.items()}
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-1,))

    def __call__(
        self,
        inputs: Array,
        source: Array | KeyValue,
        position_bias: Array | None,
        mask: Array,
        task_ids: Array,
        *,
        tuned: bool,
        deterministic: bool,
        new: tuple[Array, ...] = (),
    ) -> Array:
        """Attend from `inputs` to `source`.

        Args:
          inputs: `[batch, query, embed]`, already normalised.
          source: `[batch, key, embed]`, or what `cached` made of it before.
          position_bias: float32 `[1, heads, query, key]`, or None.
          mask: additive float32 `[batch, 1, 1 or query, key]`, of `mask_bias`.
          task_ids: `[batch]`.
          tuned: False leaves out what tasks change (`adapters_late_only`).
          deterministic: no dropout.
          new: a key, a value and the column of a `KeyValue` they are read for (`cached_attention`).

        Returns:
          `[batch, query, embed]`.
        """
        query = self._project("query", inputs, task_ids, tuned)
        query = nn.with_logical_constraint(query, _HEADS)
        if isinstance(source, KeyValue):
            mixed = cached_attention(query, *source, position_bias, mask, *new)
            return self._project("out", mixed, task_ids, tuned)
        key, value = self._keys_and_values(source, task_ids, tuned)
        # T5 drops attention weights with one mask for all queries. Such a mask depends on the key
        # alone, so dropping the value instead is the same, on an array far smaller.
        value = self.dropout(value, deterministic=deterministic)
        mixed = dot_product_attention(query, key, value, position_bias, mask)
        return self._project("out", mixed, task_ids, tuned)

    def projected(
        self, inputs: Array, task_ids: Array, *, tuned: bool
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values of self-attention, `[batch, length, heads, head_dim]` each."""
        query = self._project("query", inputs, task_ids, tuned)
        return query, *self._keys_and_values(inputs, task_ids, tuned)

    def cached(self, source: Array, task_ids: Array, *, tuned: bool) -> KeyValue:
        """Projects a sequence once for any number of queries that come later.

        Args:
          source: `[batch, key, embed]`.
          task_ids: `[batch]`; whoever reads the result has the same task.
          tuned: as in `__call__`.
        """
        key, value = self._keys_and_values(source, task_ids, tuned)
        return KeyValue(key.swapaxes(1, 2), value.swapaxes(1, 2))

    def _keys_and_values(self, source: Array, task_ids: Array, tuned: bool) -> tuple[Array, Array]:
        key = self._project("key", source, task_ids, tuned)
        value = self._project("value", source, task_ids, tuned)
        return nn.with_logical_constraint(key, _HEADS), nn.with_logical_constraint(value, _HEADS)

    def _project(self, name: str, x: Array, task_ids: Array, tuned: bool) -> Array:
        """The projection of that name, as the task changes it."""
        out: Array = self.projections[name](x)
        return apply(self.changes[name], x, out, task_ids) if tuned else out
