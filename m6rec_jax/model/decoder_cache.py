"""What decoding one position after the other keeps: keys and values, of fixed shapes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from m6rec_jax.model.attention import KeyValue
from m6rec_jax.model.plain_attention import with_column

Array = jax.Array


class LayerCache(NamedTuple):
    """What one layer attends to.

    Attributes:
      past: its own earlier positions, `[rows, heads, length, head_dim]`; other columns are masked.
      source: the encoder's output, `[sources, heads, source, head_dim]`; None without cross
        attention.
    """

    past: KeyValue
    source: KeyValue | None


class DecoderCache(NamedTuple):
    """What all layers attend to: a tree of arrays, passed in and out of each step.

    Rows that share a source (the beams or samples of one user) follow one another; the source is
    held once for all of them. Where the decoder's layers are `separate` (`LayerStack`), each array
    is a list with one for each layer, so that a step updates it in place and copies nothing.

    Attributes:
      past: `[layers, rows, heads, length, head_dim]`.
      source: `[layers with cross attention, sources, heads, source, head_dim]`; None when late
        interaction leaves no such layer.
      source_mask: bool `[sources, source]`.
    """

    past: KeyValue
    source: KeyValue | None
    source_mask: Array

    @property
    def length(self) -> int:
        """How many positions there is room for."""
        return self.past.key[0].shape[-2]

    @property
    def num_rows(self) -> int:
        """Rows decoded."""
        return self.past.key[0].shape[0]

    @property
    def rows_per_source(self) -> int:
        """How many rows share a source."""
        return self.num_rows // self.source_mask.shape[0]

    def layers(self, start: int, stop: int, *, with_source: bool) -> LayerCache:
        """The caches of layers [start, stop), stacked."""
        past = KeyValue(*(array[start:stop] for array in self.past))
        return LayerCache(past, self.source if with_source else None)

    def with_column(self, written: Sequence[KeyValue], column: Array) -> DecoderCache:
        """With keys and values of one position, `[layers here, rows, heads, 1, head_dim]` each.

        Written for all layers at once, so that a loop updates the arrays in place.
        """
        of_all_layers: Any = (
            [*itertools.chain(*parts)] if isinstance(parts[0], list) else jnp.concatenate(parts)
            for parts in zip(*written, strict=True)
        )
        put = functools.partial(with_column, column=column)
        return self._replace(past=jax.tree.map(put, self.past, KeyValue(*of_all_layers)))

    def take_rows(self, rows: Array) -> DecoderCache:
        """The past of other rows: beams go on from their parents.

        Args:
          rows: int32 `[rows]`, each within the rows of its own source.
        """
        past = jax.tree.map(lambda array: jnp.take(array, rows, axis=-4), self.past)
        return self._replace(past=past)
