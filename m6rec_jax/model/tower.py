"""The towers: layers, their relative position bias and the final norm.

`Decoder.run` takes a whole target at once (teacher forcing); `start` and `step` take one position
after the other with a cache, through the same layers, and give the same.
"""

from collections.abc import Callable
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
Look = Callable[[Array, Array, Any], Any]


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
        every: bool = False,
    ) -> Array:
        """Layers [start, stop) over x `[batch, length, embed]`; other arguments as for `Layer`.

        Args:
          source: source, source_mask and use_source.
          every: see `LayerStack`.
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
            every=every,
            tuned=self._tuned(start),
        )

    def run_while(
        self,
        x: Array,
        mask: Array,
        task_ids: Array,
        *source: Array | None,
        start: int,
        look: Look,
        carry: Any,
        going: Callable[[Any], Array],
    ) -> Any:
        """Layers from `start` on while they are needed, without dropout; arguments as for `run`.

        Args:
          look: (state after the final norm, number of the layer above `start`, carry) → carry,
            after each layer.
          carry: what `look` begins with.
          going: whether, by the carry, the next layer is needed.

        Returns:
          The last carry.
        """
        length, layer = x.shape[1], self.layers.make_layer()
        inputs = (mask, self._position_bias(length, length), task_ids, *source)
        options = {"deterministic": True, "tuned": self._tuned(start)}
        norm = self._detached_norm()

        def run(variables: Variables, index: Array, now: tuple[Array, Any]) -> tuple[Array, Any]:
            x = layer.apply(variables, now[0], *inputs, **options)
            return x, look(norm(x), index - start, now[1])

        (_, carry), _ = self.layers.run_while(
            run, (x, carry), lambda now: going(now[1]), start=start, stop=self.num_layers
        )
        return carry

    def _detached_norm(self) -> Callable[[Array], Array]:
        """The final norm as a pure function, for use inside loops."""
        norm, variables = LayerNorm(self.config, parent=None), self.final_norm.variables

        def apply(x: Array) -> Array:
            return norm.apply(variables, x)

        return apply

    def finish(self, x: Array, *, deterministic: bool) -> Array:
        """Final norm (and dropout) over `[..., length, embed]`."""
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
        if self.first_late >= self.num_layers:
            return DecoderCache(past, None, source_mask)
        projected = self._project_source(source, task_ids)
        return DecoderCache(past, projected, source_mask)

    def _project_source(self, source: Array, task_ids: Array) -> KeyValue:
        """Keys and values of the source in each late layer, `[late layers, sources, ...]`."""
        attention = Attention(self.config, parent=None)

        def project(variables: Variables, carry: None, own: None) -> tuple[None, KeyValue]:
            own_part = {name: tree.get("cross_attention", {}) for name, tree in variables.items()}
            # Layers with cross attention are late ones, so tasks always change them.
            return None, attention.apply(
                own_part, source, task_ids, tuned=True, method=attention.cached
            )

        projected: KeyValue
        start, stop = self.first_late, self.num_layers
        _, projected = self.layers.scan(project, None, None, start=start, stop=stop)
        return projected

    def keys_without_source(self, x: Array, mask: Array, task_ids: Array) -> KeyValue:
        """Keys and values of the late layers where nothing reads the source.

        Args:
          x: `[batch, length, embed]` of the early layers.
          mask: additive float32 `[batch, 1, length, length]`.
          task_ids: `[batch]`.

        Returns:
          `[late layers, batch, heads, length, head_dim]`.
        """
        layer, position_bias = self.layers.make_layer(), self._position_bias(x.shape[1], x.shape[1])

        def run(variables: Variables, x: Array, own: None) -> tuple[Array, KeyValue]:
            inputs = (mask, position_bias, task_ids)
            return layer.apply(variables, x, *inputs, with_keys=True)

        keys: KeyValue
        start, stop = self.first_late, self.num_layers
        _, keys = self.layers.scan(run, x, None, start=start, stop=stop)
        return keys

    def run_ends(
        self,
        x: Array,
        past: KeyValue,
        visible: Array,
        source: Array,
        source_mask: Array,
        task_ids: Array,
    ) -> Array:
        """The late layers over the last position of each row; see `M6Rec.decode_ends`.

        Args:
          x: `[rows, 1, embed]`.
          past: `[late layers, rows, heads, length, head_dim]`; its last position is x's.
          visible: bool `[rows, length]`.
          source: `[sources, source, embed]`.
          source_mask: bool `[sources, source]`.
          task_ids: `[sources]`.
        """
        length, column = visible.shape[1], jnp.int32(visible.shape[1] - 1)
        of_rows = jnp.repeat(task_ids, x.shape[0] // source.shape[0])
        inputs = (
            *(mask_bias(visible)[:, None, None], self._position_bias(1, length, column)),
            *(of_rows, None, mask_bias(source_mask)[:, None, None]),
        )
        layer = self.layers.make_layer()

        def run(variables: Variables, x: Array, own: LayerCache) -> tuple[Array, None]:
            x, _ = layer.apply(variables, x, *inputs, cache=own, column=column)
            return x, None

        own = LayerCache(past, self._project_source(source, task_ids))
        start, stop = self.first_late, self.num_layers
        x, _ = self.layers.scan(run, x, own, start=start, stop=stop)
        return x

    def step(
        self,
        x: Array,
        cache: DecoderCache,
        position: Array,
        column: Array,
        task_ids: Array,
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
