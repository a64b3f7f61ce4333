"""The autoregressive tower: packed candidates or target text, attending to the encoder."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.attention import Attention
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dropout import dropout
from m6rec_jax.model.feed_forward import FeedForward
from m6rec_jax.model.layer_norm import LayerNorm
from m6rec_jax.model.relative_bias import RelativeBias
from m6rec_jax.model.stack import LayerStack, example_hidden

Array = jax.Array


class DecoderLayer(nn.Module):
    """Causal self-attention, cross attention and feed-forward, each normalised first."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        position_bias: Array | None,
        task_ids: Array,
        source: Array | None,
        source_mask: Array | None,
        use_source: Array | None,
        *,
        with_adapter: bool = True,
        deterministic: bool = True,
    ) -> Array:
        """One layer.

        Args:
          x: `[batch, target, embed]`.
          mask: additive float32 `[batch, 1, target, target]`.
          position_bias: float32 `[1, heads, target, target]`; None with per-layer tables.
          task_ids: `[batch]`.
          source: the encoder's output `[batch, source, embed]`; None skips cross attention.
          source_mask: additive float32 `[batch, 1, 1 or target, source]`.
          use_source: `[batch]` bool; False zeroes what cross attention adds, so that an item
            tower's row sees none of the user. None: all True.
          with_adapter: apply this layer's adapter, where there is one.
          deterministic: no dropout.

        Returns:
          `[batch, target, embed]`.
        """
        config, length = self.config, x.shape[1]
        if position_bias is None:
            position_bias = RelativeBias(config, bidirectional=False, name="relative_bias")(
                length, length
            )
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        normed = LayerNorm(config.layer_norm_epsilon, config.dtype, name="self_attention_norm")(x)
        attended = Attention(config, name="self_attention")(
            normed, normed, position_bias, mask, deterministic=deterministic
        )
        x = x + dropout(config)(attended, deterministic=deterministic)
        if source is not None and source_mask is not None:
            normed = LayerNorm(
                config.layer_norm_epsilon, config.dtype, name="cross_attention_norm"
            )(x)
            attended = Attention(config, name="cross_attention")(
                normed, source, None, source_mask, deterministic=deterministic
            )
            if use_source is not None:
                attended = jnp.where(use_source[:, None, None], attended, 0)
            x = x + dropout(config)(attended, deterministic=deterministic)
        normed = LayerNorm(config.layer_norm_epsilon, config.dtype, name="mlp_norm")(x)
        changed = FeedForward(config, name="mlp")(
            normed, task_ids, with_adapter=with_adapter, deterministic=deterministic
        )
        x = x + dropout(config)(changed, deterministic=deterministic)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


class Decoder(nn.Module):
    """The layers, their relative position bias and the final norm."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        if not config.per_layer_relative_bias:
            self.relative_bias = RelativeBias(config, bidirectional=False)
        self.layers = LayerStack(
            config,
            num_layers=config.num_decoder_layers,
            make_layer=lambda: DecoderLayer(config, parent=None),
            example_inputs=lambda: (
                example_hidden(config),
                jnp.zeros((1, 1, 1, 1)),
                None if config.per_layer_relative_bias else jnp.zeros((1, 1, 1, 1)),
                jnp.zeros((1,), jnp.int32),
                example_hidden(config),
                jnp.zeros((1, 1, 1, 1)),
                None,
            ),
        )
        self.final_norm = LayerNorm(config.layer_norm_epsilon, config.dtype)
        self.dropout = dropout(config)

    def run(
        self,
        x: Array,
        mask: Array,
        task_ids: Array,
        source: Array | None,
        source_mask: Array | None,
        use_source: Array | None,
        *,
        start: int,
        stop: int,
        deterministic: bool,
    ) -> Array:
        """Layers [start, stop) over x `[batch, target, embed]`; arguments as in `DecoderLayer`."""
        if start >= stop:
            return x
        config, length = self.config, x.shape[1]
        position_bias = (
            None if config.per_layer_relative_bias else self.relative_bias(length, length)
        )
        late_only = config.prompts.adapters_late_only
        return self.layers(
            x,
            mask,
            position_bias,
            task_ids,
            source,
            source_mask,
            use_source,
            start=start,
            stop=stop,
            deterministic=deterministic,
            with_adapter=not late_only or start >= config.first_cross_layer,
        )

    def finish(self, x: Array, *, deterministic: bool) -> Array:
        """Final norm (and dropout) over `[batch, target, embed]`."""
        return self.dropout(self.final_norm(x), deterministic=deterministic)
