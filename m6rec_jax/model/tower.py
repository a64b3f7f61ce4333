"""The towers: layers, their relative position bias and the final norm.

`Decoder.run` takes a whole target at once (teacher forcing); `start` and `step` take one position
after the other with a cache, through the same layers, and give the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.attention import Attention, KeyValue, mask_bias
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.decoder_cache import DecoderCache, LayerCache
from m6rec_jax.model.layer import Layer, LayerNorm, dropout
from m6rec_jax.model.relative_bias import RelativeBias
from m6rec_jax.model.stack import LayerStack, Variables

Array = jax.Array


class Tower(nn.Module):
    """What both towers have: layers `first_late` and above are late ones."""

    config: ModelConfig
    num_layers: int
    first_late: int
    bidirectional: bool

    def setup(self) -> None:
        config, bidirectional = self.config, self.bidirectional

        def example_inputs() -> tuple[Array | None, ...]:
            hidden, mask = jnp.zeros((1, 1, config.embed_dim), config.dtype), jnp.zeros((1,) * 4)
            bias = None if config.per_layer_relative_bias else mask
            source = () if bidirectional else (hidden, mask)
            return hidden, mask, bias, jnp.zeros((1,), jnp.int32), *source

        if not config.per_layer_relative_bias:
            self.relative_bias = RelativeBias(config, bidirectional)
        self.layers = LayerStack(
            config,
            num_layers=self.num_layers,
            make_layer=lambda: Layer(config, bidirectional, parent=None),
            example_inputs=example_inputs,
        )
        self.final_norm = LayerNorm(config)
        self.dropout = dropout(config)

    def run(
        self,
        x: Array,
        mask: Array,
        task_ids: Array,
        *source: Array | None,
        start: int,
        stop: int,
        deterministic: bool,
    ) -> Array:
        """Layers [start, stop) over x `[batch, length, embed]`; other arguments as for `Layer`.

        Args:
          source: source, source_mask and use_source.
        """
        if start >= stop:
            return x
        length = x.shape[1]
        position_bias = self._position_bias(length, length)
        return self.layers(
            x,
            *(mask, position_bias, task_ids, *source),
            start=start,
            stop=stop,
            deterministic=deterministic,
            tuned=self._tuned(start),
        )

    def finish(self, x: Array, *, deterministic: bool) -> Array:
        """Final norm (and dropout) over `[batch, length, embed]`."""
        return self.dropout(self.final_norm(x), deterministic=deterministic)

    def _position_bias(self, *lengths: int | Array) -> Array | None:
        return None if self.config.per_layer_relative_bias else self.relative_bias(*lengths)

    def _tuned(self, layer: int) -> bool:
        """Whether tasks change a layer."""
        return not self.config.prompts.adapters_late_only or layer >= self.first_late


class Decoder(Tower):
    """The autoregressive tower, which also runs position by position."""

    def start(
        self, source: Array, source_mask: Array, task_ids: Array, num_rows: int, length: int
    ) -> DecoderCache:
        """An empty cache with the source's keys and values.

        Args:
          source: the encoder's output `[sources, source, embed]`.
          source_mask: bool `[sources, source]`.
          task_ids: `[sources]`.
          num_rows: rows to decode: a multiple of the sources, those of one source together.
          length: positions to make room for.
        """
        config = self.config
        shape = (config.num_decoder_layers, num_rows, config.num_heads, length, config.head_dim)
        names = ("layers", "batch", "heads", "length", "kv")
        empty: Any = nn.with_logical_constraint(jnp.zeros(shape, config.dtype), names)
        stack: Any = list(empty) if self.layers.separate else empty
        past = KeyValue(stack, stack)
        start, stop = config.first_cross_layer, config.num_decoder_layers
        if start >= stop:
            return DecoderCache(past, None, source_mask)
        attention = Attention(config, parent=None)

        def project(variables: Variables, carry: None, own: None) -> tuple[None, KeyValue]:
            own_part = {name: tree.get("cross_attention", {}) for name, tree in variables.items()}
            # Layers with cross attention are late ones, so tasks always change them.
            return None, attention.apply(
                own_part, source, task_ids, tuned=True, method=attention.cached
            )

        _, projected = self.layers.scan(project, None, None, start=start, stop=stop)
        return DecoderCache(past, projected, source_mask)

    def step(
        self, x: Array, cache: DecoderCache, position: Array, column: Array, task_ids: Array
    ) -> tuple[Array, DecoderCache]:
        """All layers over one position, which the cache then holds.

        Args:
          x: `[rows, 1, embed]`.
          cache: of `start` or of the step before.
          position: int32 scalar or `[rows]`, below the cache's length.
          column: int32 scalar; the cache holds a row's position p in column - position + p, modulo
            its length.
          task_ids: `[rows]`.

        Returns:
          `[rows, 1, embed]` before the final norm, and the new cache.
        """
        behind = (column - jnp.arange(cache.length)) % cache.length
        mask = mask_bias(behind <= position.reshape(-1, 1))[:, None, None]
        position_bias = self._position_bias(1, cache.length, column)
        source_mask = mask_bias(cache.source_mask)[:, None, None]
        layer, late_start = self.layers.make_layer(), self.first_late
        written = []
        for start, stop in ((0, late_start), (late_start, self.num_layers)):
            if start >= stop:
                continue

            def run(
                variables: Variables, x: Array, own: LayerCache, tuned: bool = self._tuned(start)
            ) -> tuple[Array, KeyValue]:
                inputs = (mask, position_bias, task_ids, None, source_mask, None)
                return layer.apply(variables, x, *inputs, cache=own, column=column, tuned=tuned)

            own = cache.layers(start, stop, with_source=start >= late_start)
            x, new = self.layers.scan(run, x, own, start=start, stop=stop)
            written.append(new)
        return x, cache.with_column(written, column)
