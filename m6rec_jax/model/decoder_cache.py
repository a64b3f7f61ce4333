"""What decoding one position after the other keeps: keys and values, of fixed shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from m6rec_jax.model.attention import KeyValue

Array = jax.Array


class LayerCache(NamedTuple):
    """What one layer attends to.

    Attributes:
      past: its own earlier positions, `[rows, length, heads, head_dim]`; later ones are masked.
      source: the encoder's output, `[sources, source, heads, head_dim]`; None without cross
        attention.
    """

    past: KeyValue
    source: KeyValue | None


class DecoderCache(NamedTuple):
    """What all layers attend to: a tree of arrays, passed in and out of each step.

    Rows that share a source (the beams or samples of one user) follow one another; the source is
    held once for all of them.

    Attributes:
      past: `[layers, rows, length, heads, head_dim]`.
      source: `[layers with cross attention, sources, source, heads, head_dim]`; None when late
        interaction leaves no such layer.
      source_mask: bool `[sources, source]`.
    """

    past: KeyValue
    source: KeyValue | None
    source_mask: Array

    @property
    def length(self) -> int:
        """How many positions there is room for."""
        return self.past.key.shape[2]

    @property
    def num_rows(self) -> int:
        """Rows decoded."""
        return self.past.key.shape[1]

    @property
    def rows_per_source(self) -> int:
        """How many rows share a source."""
        return self.num_rows // self.source_mask.shape[0]

    def layers(self, start: int, stop: int, *, with_source: bool) -> LayerCache:
        """The caches of layers [start, stop), stacked."""
        past = KeyValue(*(array[start:stop] for array in self.past))
        return LayerCache(past, self.source if with_source else None)

    def with_position(self, written: Sequence[KeyValue], position: Array) -> DecoderCache:
        """With keys and values of one position, `[layers here, rows, 1, heads, head_dim]` each.

        Written for all layers at once, so that a loop updates the arrays in place.
        """
        whole = (jnp.concatenate(parts, axis=0) for parts in zip(*written, strict=True))
        updated = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), position, axis=2)
            for old, new in zip(self.past, whole, strict=True)
        )
        return self._replace(past=KeyValue(*updated))

    def take_rows(self, rows: Array) -> DecoderCache:
        """The past of other rows: beams go on from their parents.

        Args:
          rows: int32 `[rows]`, each within the rows of its own source.
        """
        return self._replace(past=KeyValue(*(jnp.take(array, rows, axis=1) for array in self.past)))
