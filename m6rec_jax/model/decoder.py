"""The autoregressive tower: packed candidates or target text, attending to the encoder.

`run` takes a whole target at once (teacher forcing); `start` and `step` take one position after
the other with a cache, through the same layers, and give the same.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.attention import Attention, KeyValue, mask_bias
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.decoder_cache import DecoderCache, LayerCache
from m6rec_jax.model.dropout import dropout
from m6rec_jax.model.feed_forward import FeedForward
from m6rec_jax.model.layer_norm import LayerNorm
from m6rec_jax.model.relative_bias import RelativeBias
from m6rec_jax.model.stack import LayerStack, Variables, example_hidden

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
        source: Array | KeyValue | None,
        source_mask: Array | None,
        use_source: Array | None,
        *,
        cache: LayerCache | None = None,
        position: Array | None = None,
        with_adapter: bool = True,
        deterministic: bool = True,
    ) -> Array | tuple[Array, KeyValue]:
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
          cache: what the layer keeps of the earlier positions and of the source, which is then not
            passed itself; x is one position, and the mask `[1, 1, 1, cache length]`. A source may
            serve several rows that follow one another: source_mask has the sources' batch.
          position: int32 scalar, where x stands; with a cache.
          with_adapter: apply this layer's adapter and LoRA updates, where there are any.
          deterministic: no dropout.

        Returns:
          `[batch, target, embed]`; with a cache also the keys and values of this position.
        """
        config, length = self.config, x.shape[1]
        key_length = length if cache is None else cache.past.key.shape[1]
        if position_bias is None:
            position_bias = RelativeBias(config, bidirectional=False, name="relative_bias")(
                length, key_length, position
            )
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        normed = LayerNorm(config.layer_norm_epsilon, config.dtype, name="self_attention_norm")(x)
        self_attention = Attention(config, name="self_attention")
        seen: Array | KeyValue = normed
        if cache is not None:
            assert position is not None
            new = self_attention.keys_and_values(normed, task_ids, with_lora=with_adapter)
            seen, source = cache.past.with_position(new, position), cache.source
        attended = self_attention(
            *(normed, seen, position_bias, mask, task_ids),
            with_lora=with_adapter,
            deterministic=deterministic,
        )
        x = x + dropout(config)(attended, deterministic=deterministic)
        if source is not None and source_mask is not None:
            normed = LayerNorm(
                config.layer_norm_epsilon, config.dtype, name="cross_attention_norm"
            )(x)
            # Rows that share a source ask side by side, as so many queries.
            num_sources = source_mask.shape[0]
            queries = normed.reshape(num_sources, -1, normed.shape[-1])
            source_tasks = task_ids[:: normed.shape[0] // num_sources]
            attended = Attention(config, name="cross_attention")(
                *(queries, source, None, source_mask, source_tasks),
                with_lora=with_adapter,
                deterministic=deterministic,
            ).reshape(normed.shape)
            if use_source is not None:
                attended = jnp.where(use_source[:, None, None], attended, 0)
            x = x + dropout(config)(attended, deterministic=deterministic)
        normed = LayerNorm(config.layer_norm_epsilon, config.dtype, name="mlp_norm")(x)
        changed = FeedForward(config, name="mlp")(
            normed, task_ids, with_adapter=with_adapter, deterministic=deterministic
        )
        x = x + dropout(config)(changed, deterministic=deterministic)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return x if cache is None else (x, new)


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

    def start(
        self, source: Array, source_mask: Array, task_ids: Array, num_rows: int, length: int
    ) -> DecoderCache:
        """An empty cache, with the keys and values of the source projected once.

        Args:
          source: the encoder's output `[sources, source, embed]`.
          source_mask: bool `[sources, source]`.
          task_ids: `[sources]`.
          num_rows: rows to decode, a multiple of the sources.
          length: how many positions there is room for.
        """
        config = self.config
        shape = (config.num_decoder_layers, num_rows, length, config.num_heads, config.head_dim)
        empty = jnp.zeros(shape, config.dtype)
        names = ("layers", "batch", "length", "heads", "kv")
        past = KeyValue(*(nn.with_logical_constraint(empty, names) for _ in range(2)))
        start, stop = config.first_cross_layer, config.num_decoder_layers
        if start >= stop:
            return DecoderCache(past, None, source_mask)
        attention = Attention(config, parent=None)

        def project(variables: Variables, carry: None, own: None) -> tuple[None, KeyValue]:
            own_part = {name: tree.get("cross_attention", {}) for name, tree in variables.items()}
            # Layers with cross attention are late ones, so their updates always apply.
            return None, attention.apply(
                own_part, source, task_ids, with_lora=True, method=attention.keys_and_values
            )

        _, projected = self.layers.scan(project, None, None, start=start, stop=stop)
        return DecoderCache(past, projected, source_mask)

    def step(
        self, x: Array, cache: DecoderCache, position: Array, task_ids: Array
    ) -> tuple[Array, DecoderCache]:
        """All layers over one position, which the cache then holds.

        Args:
          x: `[rows, 1, embed]`.
          cache: of `start` or of the step before.
          position: int32 scalar below the cache's length.
          task_ids: `[rows]`.

        Returns:
          `[rows, 1, embed]` before the final norm, and the new cache.
        """
        config, length = self.config, cache.length
        mask = mask_bias(jnp.arange(length) <= position)[None, None, None]
        position_bias = (
            None if config.per_layer_relative_bias else self.relative_bias(1, length, position)
        )
        source_mask = mask_bias(cache.source_mask)[:, None, None]
        layer = self.layers.make_layer()
        late_start, late_only = config.first_cross_layer, config.prompts.adapters_late_only
        written = []
        for start, stop in ((0, late_start), (late_start, config.num_decoder_layers)):
            if start >= stop:
                continue
            with_adapter = not late_only or start >= late_start

            def run(
                variables: Variables, x: Array, own: LayerCache, with_adapter: bool = with_adapter
            ) -> tuple[Array, KeyValue]:
                inputs = (mask, position_bias, task_ids, None, source_mask, None)
                return layer.apply(
                    variables, x, *inputs, cache=own, position=position, with_adapter=with_adapter
                )

            own = cache.layers(start, stop, with_source=start >= late_start)
            x, new = self.layers.scan(run, x, own, start=start, stop=stop)
            written.append(new)
        return x, cache.with_position(written, position)

    def finish(self, x: Array, *, deterministic: bool) -> Array:
        """Final norm (and dropout) over `[batch, target, embed]`."""
        return self.dropout(self.final_norm(x), deterministic=deterministic)
