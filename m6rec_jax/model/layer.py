"""One layer of a tower and its parts: attention's companions, as in T5 1.1."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.attention import Attention, KeyValue
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.decoder_cache import LayerCache
from m6rec_jax.model.dense import ACTIVATIONS, Projection, Site
from m6rec_jax.model.relative_bias import RelativeBias
from m6rec_jax.model.tuning import apply, changes
from m6rec_jax.model.tuning.method import feed_forward_sites

Array = jax.Array
_HIDDEN = ("batch", "length", "embed")


def dropout(config: ModelConfig) -> nn.Dropout:
    """Dropout for `[batch, length, features]` with one mask for all positions, as in T5.

    Far fewer random bits, which would otherwise take longer than the layer itself on a CPU.
    """
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


class LayerNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · scale over the last axis, computed in float32: no mean, no bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x `[..., embed]` → the same shape, in the activations' type."""
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
            (x.shape[-1],),
            jnp.float32,
        )
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.config.layer_norm_epsilon) * scale
        return normed.astype(self.config.dtype)


class FeedForward(nn.Module):
    """(Π_i act_i(Z Wi_i)) Wo, which tuning methods may change."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, task_ids: Array, *, tuned: bool, deterministic: bool) -> Array:
        """x `[batch, length, embed]`, normalised; task_ids `[batch]` → `[batch, length, embed]`.

        `tuned` False leaves out what tasks change (`adapters_late_only`).
        """
        config, sites = self.config, feed_forward_sites(self.config)

        hidden: Array | None = None
        for index, name in enumerate(config.mlp_activations):
            wi = Projection(config, sites["hidden"], config.embed_dim**-0.5, name=f"wi_{index}")
            branch = ACTIVATIONS[name](wi(x))
            hidden = branch if hidden is None else hidden * branch
        assert hidden is not None  # ModelConfig refuses an empty list
        if tuned:
            hidden = apply(changes(config, sites["hidden"]), x, hidden, task_ids)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        hidden = dropout(config)(hidden, deterministic=deterministic)
        back = Site("wo", (config.mlp_dim,), (config.embed_dim,), ("mlp", "embed"))
        out = Projection(config, back, config.mlp_dim**-0.5, name="wo")(hidden)
        return apply(changes(config, sites["mlp"]), x, out, task_ids) if tuned else out


class Layer(nn.Module):
    """Self-attention, cross attention where there is a source, and feed-forward.

    Each is normalised first and added to its input.
    """

    config: ModelConfig
    bidirectional: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        position_bias: Array | None,
        task_ids: Array,
        source: Array | KeyValue | None = None,
        source_mask: Array | None = None,
        use_source: Array | None = None,
        *,
        cache: LayerCache | None = None,
        column: Array | None = None,
        with_keys: bool = False,
        tuned: bool = True,
        deterministic: bool = True,
    ) -> Array | tuple[Array, KeyValue]:
        """One layer.

        Args:
          x: `[batch, length, embed]`.
          mask: additive float32 `[batch, 1, length, length]`.
          position_bias: float32 `[1, heads, length, length]`; None with per-layer tables.
          task_ids: `[batch]`.
          source: the encoder's output `[batch, source, embed]`; None: no cross attention.
          source_mask: additive float32 `[batch, 1, 1 or length, source]`.
          use_source: `[batch]` or `[batch, length]` bool; False zeroes what cross attention adds,
            so that an item tower's row sees none of the user. None: all True.
          cache: the layer's keys and values of earlier positions and of the source, which is then
            not passed itself; x is one position, and the mask `[1 or batch, 1, 1, cache length]`.
            A source may serve several rows that follow one another: source_mask has the sources'
            batch.
          column: int32 scalar, where the cache holds x; with a cache.
          with_keys: also return the keys and values of all positions.
          tuned: False leaves out what tasks change (`adapters_late_only`).
          deterministic: no dropout.

        Returns:
          `[batch, length, embed]`; with a cache or with_keys also the keys and values of x.
        """
        config, length = self.config, x.shape[1]

        def added(x: Array, change: Array) -> Array:
            return x + dropout(config)(change, deterministic=deterministic)

        key_length = length if cache is None else cache.past.key.shape[-2]
        if position_bias is None:
            bias = RelativeBias(config, bidirectional=self.bidirectional, name="relative_bias")
            position_bias = bias(length, key_length, column)
        x = nn.with_logical_constraint(x, _HIDDEN)
        normed = LayerNorm(config, name="self_attention_norm")(x)
        attention = Attention(config, name="self_attention")
        seen: Array | KeyValue = normed
        inserted: tuple[Array, ...] = ()
        if cache is not None or with_keys:
            new = attention.cached(normed, task_ids, tuned=tuned)
        if cache is not None and column is not None:
            seen, source, inserted = cache.past, cache.source, (*new, column)
        options: dict[str, Any] = {"tuned": tuned, "deterministic": deterministic}
        attended = attention(normed, seen, position_bias, mask, task_ids, new=inserted, **options)
        x = added(x, attended)
        if source is not None and source_mask is not None:
            normed = LayerNorm(config, name="cross_attention_norm")(x)
            # Rows that share a source ask side by side, as so many queries.
            num_sources = source_mask.shape[0]
            queries = normed.reshape(num_sources, -1, normed.shape[-1])
            source_tasks = task_ids[:: normed.shape[0] // num_sources]
            attention = Attention(config, name="cross_attention")
            attended = attention(queries, source, None, source_mask, source_tasks, **options)
            attended = attended.reshape(normed.shape)
            if use_source is not None:
                seeing = use_source.reshape(use_source.shape[0], -1, 1)
                attended = jnp.where(seeing, attended, 0)
            x = added(x, attended)
        normed = LayerNorm(config, name="mlp_norm")(x)
        x = added(x, FeedForward(config, name="mlp")(normed, task_ids, **options))
        x = nn.with_logical_constraint(x, _HIDDEN)
        return (x, new) if with_keys or cache is not None else x
