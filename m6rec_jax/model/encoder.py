"""The bidirectional tower: source text and soft prompts, early and late layers."""

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


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normalised first and added to its input."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        position_bias: Array | None,
        task_ids: Array,
        *,
        with_adapter: bool = True,
        deterministic: bool = True,
    ) -> Array:
        """One layer.

        Args:
          x: `[batch, length, embed]`.
          mask: additive float32 `[batch, 1, length, length]`.
          position_bias: float32 `[1, heads, length, length]`; None with per-layer tables.
          task_ids: `[batch]`.
          with_adapter: apply this layer's adapter and LoRA updates, where there are any.
          deterministic: no dropout.

        Returns:
          `[batch, length, embed]`.
        """
        config, length = self.config, x.shape[1]
        if position_bias is None:
            position_bias = RelativeBias(config, bidirectional=True, name="relative_bias")(
                length, length
            )
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        normed = LayerNorm(config.layer_norm_epsilon, config.dtype, name="self_attention_norm")(x)
        attended = Attention(config, name="self_attention")(
            *(normed, normed, position_bias, mask, task_ids),
            with_lora=with_adapter,
            deterministic=deterministic,
        )
        x = x + dropout(config)(attended, deterministic=deterministic)
        normed = LayerNorm(config.layer_norm_epsilon, config.dtype, name="mlp_norm")(x)
        changed = FeedForward(config, name="mlp")(
            normed, task_ids, with_adapter=with_adapter, deterministic=deterministic
        )
        x = x + dropout(config)(changed, deterministic=deterministic)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


class Encoder(nn.Module):
    """The layers, their relative position bias and the final norm."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        if not config.per_layer_relative_bias:
            self.relative_bias = RelativeBias(config, bidirectional=True)
        self.layers = LayerStack(
            config,
            num_layers=config.num_encoder_layers,
            make_layer=lambda: EncoderLayer(config, parent=None),
            example_inputs=lambda: (
                example_hidden(config),
                jnp.zeros((1, 1, 1, 1)),
                None if config.per_layer_relative_bias else jnp.zeros((1, 1, 1, 1)),
                jnp.zeros((1,), jnp.int32),
            ),
        )
        self.final_norm = LayerNorm(config.layer_norm_epsilon, config.dtype)
        self.dropout = dropout(config)

    def run(
        self,
        x: Array,
        mask: Array,
        task_ids: Array,
        *,
        start: int,
        stop: int,
        deterministic: bool,
    ) -> Array:
        """Layers [start, stop) over x `[batch, length, embed]` with an additive mask."""
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
            start=start,
            stop=stop,
            deterministic=deterministic,
            with_adapter=not late_only or start >= config.late_layers_start,
        )

    def finish(self, x: Array, *, deterministic: bool) -> Array:
        """Final norm (and dropout) over `[batch, length, embed]`."""
        return self.dropout(self.final_norm(x), deterministic=deterministic)
